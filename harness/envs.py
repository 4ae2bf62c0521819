"""Which interpreter runs which method: the main environment, or one of its own.

A method whose requirements fit together with all others shares the main environment (this interpreter). What it needs there
comes with an extra of this distribution; `missing` names the packages that are not installed and the command that adds them.
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

from harness.methods.base import Method

MAIN = "main"


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """What an environment lacks for a method, and the command that adds it."""

    packages: tuple[str, ...]
    install: str


def python(environment: str) -> Path:
    """The interpreter of an environment."""
    if environment != MAIN:
        raise KeyError(environment)
    return Path(sys.executable)


def missing(method: Method) -> Missing | None:
    """None when all that the method imports is there. Looks for packages without importing them."""
    absent = tuple(name for name in method.modules if not _found(name))
    if not absent:
        return None
    install = f'pip install "quant-harness[{method.extra}]"' if method.extra else f"pip install {' '.join(method.requirements)}"
    return Missing(packages=absent, install=install)


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a submodule of a package that is not there
        return False
