"""What cells took on this machine before, from the run files below a results folder, ready to be looked up.

Files are read newest first and once; of each, only the lines that say what a cell took. What was measured on a machine of
another make, on another device or with another number of threads says nothing here and is left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from harness import store
from harness.costs import CellCost, Expected, Source
from harness.errors import BadInput, StoreError
from harness.forecast.work import Place, entry, model_of, places, standing
from harness.spec import RunContext

MOST_FILES = 64
"""Run files that are looked at: older ones say little of today's machine."""

MOST_SEEN = 16
"""Costs that are kept for one place, the newest."""

CELL, MEMORY, DEVICE_MEMORY, DISK = "cell", "memory peak", "device memory peak", "disk"
ARTIFACT, KEPT = "artifact", "kept answers"
"""What places and ratios of whole cells are kept under."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Here:
    """The conditions that the history must share: `machine.host_id()`, the kind of device, the CPU threads."""

    host: str
    device: str
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a piece took, or a cell held or left, in seconds or bytes: a part that is `fixed`, one that is `proportional` to the
    size of the model, and one that `grows` with it and nobody knows how: at most in proportion."""

    fixed: float = 0.0
    proportional: float = 0.0
    grows: float = 0.0
    model: str
    parameters: int | None
    units: float | None = 1.0


@dataclass(slots=True, kw_only=True)
class History:
    """`seen` by the key of a place, newest first. `ratios`: how what was measured stood to what the rule of a source had said,
    by what it was: a stage, a probe, or CELL, MEMORY, DISK of a whole cell. `runs` held any; `unread` could not be, each with
    the reason."""

    seen: dict[str, list[Seen]] = field(default_factory=dict)
    ratios: dict[tuple[str, Source], list[float]] = field(default_factory=dict)
    runs: int = 0
    unread: list[str] = field(default_factory=list)

    def add(self, cost: CellCost) -> None:
        """Takes in what a cell took, older than all before it."""
        model, shared = model_of(cost.cell), standing(cost.cell, baseline=cost.baseline)
        for piece in cost.pieces:
            fixed = max(0.0, piece.seconds - piece.model_seconds)
            seen = Seen(fixed=fixed, grows=piece.model_seconds, model=model, parameters=cost.parameters, units=piece.units)
            kept_as = entry(piece.what, piece.question)
            self._keep(places(kept_as, piece.question, piece.subject, shared), seen)
            self._compare(kept_as, piece.expected, piece.seconds)
        if cost.whole:
            for what, seen in _held(cost, model).items():
                self._keep(places(what, cost.questions, "", shared), seen)
            self._compare_cell(cost)

    def at(self, key: str) -> list[Seen]:
        return self.seen.get(key, [])

    def _keep(self, at: Iterable[Place], seen: Seen) -> None:
        for place in at:
            kept = self.seen.setdefault(place.key, [])
            if len(kept) < MOST_SEEN:
                kept.append(seen)

    def _compare_cell(self, cost: CellCost) -> None:
        self._compare(CELL, cost.expected.seconds, cost.seconds)
        self._compare(MEMORY, cost.expected.host_bytes, cost.host_bytes)
        self._compare(DEVICE_MEMORY, cost.expected.device_bytes, cost.device_bytes)
        if cost.artifact_bytes is not None:
            self._compare(DISK, cost.expected.disk_bytes, cost.artifact_bytes + (cost.kept_bytes or 0))

    def _compare(self, what: str, expected: Expected | None, actual: float | None) -> None:
        if expected is not None and expected.rule and actual:
            self.ratios.setdefault((what, expected.source), []).append(actual / expected.rule)


def _held(cost: CellCost, model: str) -> dict[str, Seen]:
    """What a whole cell held or left, by what it is. Of its memory the runtime is fixed and the weights are in proportion; the
    rest (activations, what a loader copies) depends on more than the model's size."""
    held: dict[str, Seen] = {}
    weights = cost.estimated_bytes or 0
    if cost.host_bytes is not None:
        start = min(cost.host_bytes, cost.host_start_bytes or 0)
        own = min(weights, cost.host_bytes - start)
        rest = cost.host_bytes - start - own
        held[MEMORY] = Seen(fixed=start, proportional=own, grows=rest, model=model, parameters=cost.parameters)
    if cost.device_bytes is not None:
        own = min(weights, cost.device_bytes)
        held[DEVICE_MEMORY] = Seen(proportional=own, grows=cost.device_bytes - own, model=model, parameters=cost.parameters)
    if cost.artifact_bytes is not None and weights:
        held[ARTIFACT] = Seen(proportional=cost.artifact_bytes, model=model, parameters=weights)
    if cost.kept_bytes is not None:
        held[KEPT] = Seen(grows=cost.kept_bytes, model=model, parameters=cost.parameters)
    return held


def read(results: Path, here: Here) -> History:
    """The history in all suites' folders below `results`, and in `results` itself where it is one. What cannot be read is
    named."""
    history = History()
    files = sorted([*results.glob("*.jsonl"), *results.glob("*/*.jsonl")], key=lambda path: path.name, reverse=True)
    for path in files[:MOST_FILES]:
        try:
            header = store.read_header(path)
            if header is not None and _conditions(header.context) == here:
                costs = list(store.costs(path))
                for cost in reversed(costs):
                    history.add(cost)
                history.runs += bool(costs)
        except (BadInput, StoreError, OSError) as error:
            history.unread.append(f"{path.name}: {error}")
    return history


def _conditions(context: RunContext) -> Here:
    return Here(host=context.host, device=context.device.split(":")[0], threads=context.threads)
