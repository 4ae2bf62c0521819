"""What differs between two runs beside their numbers: the possible causes of a change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from harness.gate.join import Side
from harness.gate.types import Difference
from harness.report.pieces import kernels_of
from harness.spec import Cell, RunContext, to_json
from harness.store import Run

_SAID = ("commit", "harness", "source", "python", "host", "device", "threads")
"""Of a context, by these names."""


def differences(before: Run, after: Run) -> tuple[Difference, ...]:
    """Packages (those of other environments by their names), commit, versions, machine, weights; in that order, each by name."""
    old, new = before.header.context, after.header.context
    found = [*_apart("package", old.packages, new.packages)]
    for name in sorted(_environments(before).keys() | _environments(after).keys()):
        packages = [_environments(run).get(name, {}) for run in (before, after)]
        if all(packages):  # an environment that only one of them needed explains nothing
            found += _apart(f"package of {name},", *packages)
    return (*found, *_conditions(old, new), *_apart("weights of", before.plan.weights, after.plan.weights))


def between(old: RunContext, new: RunContext, weights: tuple[Mapping[str, str], Mapping[str, str]]) -> tuple[Difference, ...]:
    """What the first and the last lines of two runs alone say: as `differences`, without packages of other environments.
    `weights`: digests of the models by name, before and after."""
    return (*_apart("package", old.packages, new.packages), *_conditions(old, new), *_apart("weights of", *weights))


def _conditions(old: RunContext, new: RunContext) -> Iterator[Difference]:
    yield from _apart("", {n: _text(old, n) for n in _SAID}, {n: _text(new, n) for n in _SAID})
    yield from _apart("package of rows from", old.plugins, new.plugins)
    yield from _apart("machine:", _flat(old.machine), _flat(new.machine))


def kernels(side: Side) -> Mapping[str, int]:
    """What really ran, as the engine reported it: layers by kernel; empty where no answer says."""
    ran = next((found for asked in side.asked.values() if (found := kernels_of(asked.facts))), {})
    return {name: count for name, (count, _) in ran.items()}


def schemes_apart(before: Cell, after: Cell) -> str:
    """In words, what differs between two cells of one model, method and width."""
    first, second = ({**c.scheme.options, **_running(c)} for c in (before, after))
    names = sorted(n for n in first.keys() | second.keys() if first.get(n) != second.get(n))
    return f"other {', '.join(names)}" if names else "another origin"


def _running(cell: Cell) -> Mapping[str, object]:
    return dict(to_json(cell.running))


def _environments(run: Run) -> Mapping[str, Mapping[str, str]]:
    """Packages of the other environments, by name; the last listed one counts."""
    return {e.name: e.packages for e in run.environments.values() if e.name != "main"}


def _text(context: RunContext, name: str) -> str:
    value = getattr(context, name)
    return "" if value is None else str(value)


def _flat(table: Mapping[str, object], above: str = "") -> dict[str, str]:
    """Plain data as texts by their places; lists as one text."""
    found: dict[str, str] = {}
    for name, value in table.items():
        place = f"{above}{name}"
        if isinstance(value, Mapping):
            found |= _flat(value, f"{place}.")
        else:
            found[place] = "" if value is None else str(value)
    return found


def _apart(what: str, before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[Difference]:
    for name in sorted(before.keys() | after.keys()):
        if before.get(name, "") != after.get(name, ""):
            yield Difference(what=f"{what} {name}".strip(), before=before.get(name, ""), after=after.get(name, ""))
