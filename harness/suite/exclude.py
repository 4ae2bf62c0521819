"""What a suite takes out of its matrix. An entry of `exclude` that takes nothing out is a mistake: what its author did not want
would run for hours."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence

from harness import plugins
from harness.errors import BadInput, UnknownName
from harness.methods import METHODS
from harness.methods.base import running_values
from harness.recipes import RECIPE
from harness.spec import MIXTURE, Cell, Given, Served
from harness.suite.file import SuiteFile
from harness.suite.mistakes import shown
from harness.suite.options import CHANNEL, WHOLE, plain, same

_OF_EVERY_CELL = ("method", "bits", "target_bits", "kv", "model", "checkpoint", "url", "engine")

Pattern = Mapping[str, object]


def entry_of(written: SuiteFile, cell: Cell) -> int | None:
    """Which entry of `exclude` takes a cell out, the first one; None where none does."""
    return next((index for index, pattern in enumerate(written.suite.exclude) if _matches(cell, pattern)), None)


def check(written: SuiteFile, cells: Sequence[Cell]) -> None:
    """BadInput, with the line, for an entry of `exclude` that takes none of the cells out, or that names what there is not."""
    for index, pattern in enumerate(written.suite.exclude):
        where = written.where("exclude", index)
        if not pattern:
            raise BadInput(
                f"{where}: an empty entry of `exclude` would take out every cell; write exclude: [{{method: gptq, bits: 2}}]"
            )
        _check_names(pattern, cells, where)
        left: Sequence[Cell] = cells
        fitted: list[str] = []
        for key, wanted in pattern.items():
            for each in _listed(wanted):
                _check_spelling(key, each, cells, where)
            fitting = [cell for cell in left if _has(cell, key, wanted)]
            if not fitting:
                raise BadInput(f"{where}: `exclude` takes no cell out: {_none_has(key, wanted, left, fitted)}")
            left = fitting
            fitted.append(f"{key}: {plain(wanted)}")


def _check_names(pattern: Pattern, cells: Sequence[Cell], where: str) -> None:
    rows = [METHODS[name] for name in {cell.method for cell in cells}]
    known = {*_OF_EVERY_CELL, *(name for row in rows for name in (*row.options, *row.running_options))}
    known |= {name for cell in cells for name in running_values(cell.running)}
    for key in pattern:
        if key not in known:
            raise UnknownName("key of a cell in exclude", key, known, where)
    for name in _listed(pattern.get("method", [])):
        if not isinstance(name, str) or name not in METHODS:
            raise plugins.unknown("method", str(name), where)


def _check_spelling(key: str, wanted: object, cells: Iterable[Cell], where: str) -> None:
    """BadInput for a value that no cell has and that one has in another kind or case: "4" for 4, 1 for true."""
    there = _there(key, cells)
    if any(same(value, wanted) for value in there):
        return
    meant = [v for v in there if v == wanted or plain(_short(v)).lower() == str(wanted).strip().lower()]
    if meant:
        kind = "a text" if isinstance(wanted, str) and not isinstance(meant[0], str) else "what no cell has"
        raise BadInput(f"{where}: exclude: {key}: {shown(wanted)} is {kind}; write {key}: {plain(_short(meant[0]))}")


def _none_has(key: str, wanted: object, cells: Sequence[Cell], fitted: Sequence[str]) -> str:
    """Why a key takes nothing out of the cells that `fitted`, the keys before it, have left."""
    of = f"with {', '.join(fitted)}" if fitted else "of the suite"
    there = [plain(_short(value)) for value in _there(key, cells)]
    if not there:
        return f"no cell {of} has `{key}`; take it out of the entry"
    near = difflib.get_close_matches(str(wanted), there, n=1, cutoff=0.6) if isinstance(wanted, str) else []
    then = f"did you mean {key}: {near[0]}?" if near else f"there is {key}: {', '.join(there)}"
    return f"no cell {of} has {key}: {shown(wanted)}; {then}"


def _there(key: str, cells: Iterable[Cell]) -> list[object]:
    """The values of a key that the cells have, each once."""
    found: dict[str, object] = {}
    for cell in cells:
        values = _values(cell)
        if key in values:
            found.setdefault(json.dumps(values[key], sort_keys=True, default=str), values[key])
    return list(found.values())


def _short(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _listed(wanted: object) -> list[object]:
    return wanted if isinstance(wanted, list) else [wanted]


def _matches(cell: Cell, pattern: Pattern) -> bool:
    return all(_has(cell, key, wanted) for key, wanted in pattern.items())


def _has(cell: Cell, key: str, wanted: object) -> bool:
    value = _values(cell).get(key)
    return any(same(value, _meant(key, each)) for each in _listed(wanted))


def _meant(key: str, wanted: object) -> object:
    """A value as cells have it: `channel` is a word for a group size."""
    return WHOLE if key == "group_size" and wanted == CHANNEL else wanted


def _values(cell: Cell) -> dict[str, object]:
    """A cell by what a suite may write of it."""
    return {
        **{name: value for name, value in cell.scheme.options.items() if name not in (MIXTURE, RECIPE)},
        **running_values(cell.running),
        **({"checkpoint": cell.origin.checkpoint.name} if isinstance(cell.origin, Given) else {}),
        **({"url": cell.origin.url} if isinstance(cell.origin, Served) else {}),
        **({"kv": cell.running.kv} if cell.running.kv else {}),
        "method": cell.method,
        ("bits" if cell.scheme.mixture is None else "target_bits"): cell.bits,
        "engine": cell.running.engine,
        "model": cell.model.name,
    }
