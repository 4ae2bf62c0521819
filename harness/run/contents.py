"""The bytes of an artifact: which of its folder's files a runtime reads, and their digests."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from harness import mixing, recipes
from harness.artifact import MANIFEST, ArtifactRecord, StoredFile
from harness.errors import BadInput
from harness.files import Changed, Hashes
from harness.formats import gguf_reader
from harness.methods import layer_errors, reload
from harness.models import source
from harness.spec import digest

_NOTES = (MANIFEST, reload.FILE, layer_errors.FILE, mixing.FILE, recipes.FILE, source.FACTS)
_OURS = re.compile(rf"{'|'.join(map(re.escape, _NOTES))}|(verified|answers)-[0-9a-f]{{12}}\.json")
"""What the harness notes beside an artifact: how it was made and checked, for one machine and day."""


def files(artifact: Path) -> Mapping[str, Path]:
    """The files that a runtime reads, by their names in the folder, sorted; links count as what they lead to. A GGUF file that
    was given has its own name, and all of its parts."""
    found: dict[str, Path] = {}
    for path in artifact.rglob("*"):
        name = path.relative_to(artifact).as_posix()
        if _OURS.fullmatch(name) or not path.is_file():
            continue
        if path.is_symlink() and gguf_reader.is_gguf(path):
            given = path.readlink()
            found.update({part.name: part for part in gguf_reader.parts(given)})
        else:
            found[name] = path
    return dict(sorted(found.items()))


def read(artifact: Path, hashes: Hashes) -> ArtifactRecord:
    """What a run file says of an artifact. BadInput where it is being written to."""
    try:
        stored = tuple(
            StoredFile(name=name, bytes=path.stat().st_size, sha256=hashes.of(path)) for name, path in files(artifact).items()
        )
    except Changed as error:
        raise BadInput(f"{error}; let no other program write into the cache while quant-harness runs") from None
    return ArtifactRecord(digest=digest(stored), folder=artifact.name, files=stored)
