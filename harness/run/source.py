"""Which code can change a number, and its digest: runs of one context were measured by the same code.

A module that changes no measurement says so itself, by a line `CHANGES_NUMBERS = False` at its top level; in a package's
`__init__.py` it holds for all modules of the package that say nothing else.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]

_DECLARATION = re.compile(rb"^CHANGES_NUMBERS = (True|False)$", re.MULTILINE)


def measuring_files(root: Path = ROOT) -> list[Path]:
    """The package's own files that can change a number, sorted: all that do not declare otherwise."""
    declared: dict[Path, bool] = {}
    for path in root.rglob("*.py"):
        declaration = _DECLARATION.search(path.read_bytes())
        if declaration is not None:
            declared[path] = declaration[1] == b"True"

    def measures(path: Path) -> bool:
        packages = [folder / "__init__.py" for folder in path.parents if folder.is_relative_to(root)]
        return next((declared[place] for place in (path, *packages) if place in declared), True)

    return sorted(path for path in root.rglob("*.py") if measures(path))


def source_digest(root: Path = ROOT) -> str:
    """SHA-256 over names and contents of `measuring_files`."""
    hasher = hashlib.sha256()
    for path in measuring_files(root):
        hasher.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return hasher.hexdigest()
