"""The note beside a checkpoint that says: these weights were quantized once, and lie on that grid still.

A folder of dequantized weights looks like any other, and flatters the schemes whose grid is its own. Whoever dequantizes writes
the note, and plan, run file and report repeat it. It decides no answer, so it is in no digest and no key.
"""

from __future__ import annotations

import json
from pathlib import Path

from harness.decode import DecodeError, decode
from harness.errors import BadInput
from harness.spec import Model, SourceGrid, to_json

NOTE = "source_grid.json"


def of(source: Model) -> SourceGrid | None:
    """The grid that the note in a local model's folder names; None where there is no note. BadInput for one that says something
    else."""
    note = Path(str(source.path)) / NOTE
    if source.path is None or not note.is_file():
        return None
    try:
        grid = decode(SourceGrid, json.loads(note.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:  # DecodeError is a ValueError
        why = str(error) if isinstance(error, DecodeError) else "it is no JSON text"
        raise BadInput(f"{note}: {why}; write {_EXAMPLE}, or take the file out of the folder") from None
    if not 1 <= grid.bits <= 8 or grid.group_size < 1:
        raise BadInput(f"{note}: {grid.bits} bits in groups of {grid.group_size} are no grid; write {_EXAMPLE}")
    return grid


def write(grid: SourceGrid, folder: Path) -> None:
    """Puts the note into a checkpoint's folder."""
    (folder / NOTE).write_text(json.dumps(to_json(grid)) + "\n", encoding="utf-8")


_EXAMPLE = json.dumps(to_json(SourceGrid(format="Q4_1", bits=4, group_size=32, symmetric=False)))
