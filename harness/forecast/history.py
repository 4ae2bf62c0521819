"""What cells took on this machine before, from the run files below a results folder, ready to be looked up.

Files are read newest first and once; of each, only the lines that say what a cell took. What was measured on a machine of
another make, on another device or with another number of threads says nothing here and is left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from harness import store
from harness.costs import CellCost, Expected, PieceCost, Source
from harness.errors import BadInput, StoreError
from harness.forecast.work import Place, model_of, places
from harness.spec import RunContext

MOST_FILES = 64
"""Run files that are looked at: older ones say little of today's machine."""

MOST_SEEN = 16
"""Costs that are kept for one place, the newest."""

MEMORY, DEVICE_MEMORY, ARTIFACT, KEPT = "memory", "device memory", "artifact", "kept answers"
"""What places of whole cells are kept under."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Here:
    """The conditions that the history must share: `machine.host_id()`, the kind of device, the CPU threads."""

    host: str
    device: str
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a piece took, or a cell held or left: `fixed` + `grows`, in seconds or bytes, of which `grows` goes with the model."""

    fixed: float
    grows: float
    model: str
    parameters: int | None
    units: float | None


Quantity = Literal["seconds", "memory", "disk"]


@dataclass(slots=True, kw_only=True)
class History:
    """`seen` by the key of a place, newest first. `ratios`: how what was measured stood to what the rule of a source had said.
    `runs` held any; `unread` could not be, each with the reason."""

    seen: dict[str, list[Seen]] = field(default_factory=dict)
    ratios: dict[tuple[Quantity, Source], list[float]] = field(default_factory=dict)
    runs: int = 0
    unread: list[str] = field(default_factory=list)

    def add(self, cost: CellCost) -> None:
        """Takes in what a cell took, older than all before it."""
        for piece in cost.pieces:
            self._add_piece(cost, piece)
        if cost.whole:
            self._add_cell(cost)

    def at(self, key: str) -> list[Seen]:
        return self.seen.get(key, [])

    def _add_piece(self, cost: CellCost, piece: PieceCost) -> None:
        seen = Seen(
            fixed=max(0.0, piece.seconds - piece.model_seconds),
            grows=piece.model_seconds,
            model=model_of(cost.cell),
            parameters=cost.parameters,
            units=piece.units,
        )
        self._keep(places(piece.what, piece.question or piece.subject, cost.cell, baseline=cost.baseline), seen)
        self._compare("seconds", piece.expected, piece.seconds)

    def _add_cell(self, cost: CellCost) -> None:
        start = cost.host_start_bytes or 0
        self._add_bytes(MEMORY, cost, None if cost.host_bytes is None else cost.host_bytes - start, fixed=start)
        self._add_bytes(DEVICE_MEMORY, cost, cost.device_bytes)
        self._add_bytes(KEPT, cost, cost.kept_bytes)
        if cost.estimated_bytes:
            self._add_bytes(ARTIFACT, cost, cost.artifact_bytes, parameters=cost.estimated_bytes)
        memory = cost.host_bytes if cost.device_bytes is None else cost.device_bytes
        self._compare("memory", cost.expected.host_bytes if cost.device_bytes is None else cost.expected.device_bytes, memory)
        if cost.artifact_bytes is not None:
            self._compare("disk", cost.expected.disk_bytes, cost.artifact_bytes + (cost.kept_bytes or 0))

    def _add_bytes(self, what: str, cost: CellCost, grows: int | None, *, fixed: int = 0, parameters: int | None = None) -> None:
        if grows is not None:
            size = cost.parameters if parameters is None else parameters
            seen = Seen(fixed=float(fixed), grows=float(max(0, grows)), model=model_of(cost.cell), parameters=size, units=1.0)
            self._keep(places(what, cost.questions, cost.cell, baseline=cost.baseline), seen)

    def _keep(self, at: Iterable[Place], seen: Seen) -> None:
        for key in {place.key for place in at}:
            kept = self.seen.setdefault(key, [])
            if len(kept) < MOST_SEEN:
                kept.append(seen)

    def _compare(self, quantity: Quantity, expected: Expected | None, actual: float | None) -> None:
        if expected is not None and expected.rule and actual:
            self.ratios.setdefault((quantity, expected.source), []).append(actual / expected.rule)


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
