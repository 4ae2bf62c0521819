"""The plan of a suite on one device, as types."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from harness import plugins, recipes
from harness.artifact import ModelShape
from harness.methods.base import Method
from harness.models.corpora import Corpus
from harness.probes import PROBES
from harness.spec import (
    CalibrationText,
    Cell,
    Model,
    OfferedProbe,
    PlannedCellRecord,
    PlanRecord,
    Question,
    SourceGrid,
    UnsupportedRecord,
)
from harness.suite.file import BUILT_IN, Suite


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedCell:
    """A supported square: what will be asked of it, and the estimated bytes of its artifact (None until the model is here).
    `note`: what the plan changed of what the suite leaves open. `parameters`: of the cell's model, None where its files do not
    say. `why_this_text`: what made it the one that the cell is calibrated on; empty where there is none."""

    cell: Cell
    questions: tuple[Question, ...]
    baseline: bool
    estimated_bpw: float
    estimated_bytes: int | None
    note: str = ""
    parameters: int | None = None
    why_this_text: str = ""

    @property
    def bits_unknown(self) -> bool:
        """Whether a recipe alone says the bits, so that the estimates are the most that there can be."""
        return self.cell.bits == recipes.UNKNOWN_BITS and recipes.of(self.cell.scheme) is not None

    @property
    def estimated_bits_of_the_model(self) -> float | None:
        """Estimated bits of the artifact per parameter of the model, embeddings and head included; None where not known."""
        return 8 * self.estimated_bytes / self.parameters if self.estimated_bytes is not None and self.parameters else None


@dataclass(frozen=True, slots=True, kw_only=True)
class UnsupportedSquare:
    """A square that cannot exist, and why."""

    cell: Cell
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All squares of a suite on one device, with where the inputs are found (paths are no part of any question)."""

    suite: Suite
    file: Path
    device: str
    cells: tuple[PlannedCell, ...]
    unsupported: tuple[UnsupportedSquare, ...]
    texts: Mapping[str, Corpus]
    calibrations: Mapping[str, Corpus]
    task_folders: Mapping[str, str]
    calibrated_on: tuple[CalibrationText, ...] = ()
    checkpoints: tuple[Model, ...] = ()
    """Models that are quantized already and stand for another model of the suite: cells of that one."""
    source_grids: Mapping[str, SourceGrid] = field(default_factory=dict)
    """The grids on which the weights of models lie that were quantized before, by the model's name."""
    notes: tuple[str, ...] = ()
    """What is to be said of the plan as a whole, in plan and report."""
    only: tuple[str, ...] = ()
    """The questions that were asked for by key or name, where the plan holds no others of the suite (run/only.py)."""

    @property
    def models(self) -> list[Model]:
        """All models whose files the plan needs, each once."""
        return list(dict.fromkeys([*(p.cell.model for p in self.cells), *self.checkpoints]))

    @property
    def command(self) -> str:
        """What asks the same again."""
        suite = self.file.stem if self.file.parent == BUILT_IN else self.file
        return " ".join([f"quant-harness run {suite}", *(f"--only {shlex.quote(each)}" for each in self.only)])

    def record(self, weights: Mapping[str, str]) -> PlanRecord:
        """The plan line of a run file; `weights` are the digests of the models by name."""
        return PlanRecord(
            suite=self.suite.model_dump(mode="json"),
            baseline=self.suite.baseline,
            cells=tuple(
                PlannedCellRecord(
                    cell=p.cell,
                    questions=p.questions,
                    baseline=p.baseline,
                    estimated_bpw=p.estimated_bpw,
                    estimated_bytes=p.estimated_bytes,
                )
                for p in self.cells
            ),
            unsupported=tuple(UnsupportedRecord(cell=u.cell, reason=u.reason) for u in self.unsupported),
            probes={
                name: OfferedProbe(title=PROBES[name].title, metrics=PROBES[name].metrics, package=offered.provider)
                for name in self.suite.probes
                if (offered := plugins.of("probe", name)) is not None
            },
            commands=(self.command,),
            weights=weights,
            source_grids=self.source_grids,
            calibrated_on=self.calibrated_on,
            notes=self.notes,
            only=self.only,
        )


def estimated_bytes(shape: ModelShape, bpw: float, method: Method) -> int:
    """Bytes of the artifact: quantized linears at `bpw`, the rest as stored (16 bits), all at the dtype for unquantized rows."""
    linear = sum(layer.rows * layer.columns for layer in shape.linears)
    rest_bits = bpw if method.unquantized else 16
    return round((linear * bpw + (shape.parameters - linear) * rest_bits) / 8)
