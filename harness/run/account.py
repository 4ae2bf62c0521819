"""What each cell takes while it is measured: the pieces of its work beside what was expected of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from harness.child.job import ALL, Outcome
from harness.costs import CellCost, CellForecast, Expected, PieceCost
from harness.forecast.estimate import CellPlan
from harness.forecast.work import REST, asked, units
from harness.probes import PROBES
from harness.run.recorder import now
from harness.spec import Phase, Question, digest
from harness.suite.plan import PlannedCell

CHANGES_NUMBERS = False
"""It writes down how long things took, which is no measurement of a cell."""

APART = ("load", "verify")
"""Phases of a question that are pieces of their own: the first question of a child pays them for all."""


class Account:
    """The work on one cell. What the clock says beyond the pieces is the piece `rest`."""

    def __init__(
        self,
        planned: PlannedCell,
        questions: Sequence[Question],
        plan: CellPlan | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._planned = planned
        self._all = len(questions) == len(planned.questions)
        self._forecast = CellForecast() if plan is None else plan.forecast
        self._expected = (
            {} if plan is None else {(p.work.what, p.work.question or p.work.subject): p.seconds for p in plan.pieces}
        )
        self._clock = clock
        self._begun, self._started_at = clock(), now()
        self._pieces: list[PieceCost] = []
        self._phases: list[Phase] = []
        self._failed = False

    def expected(self, what: str, question: Question | None = None) -> Expected | None:
        """The seconds that a stage or a question is expected to take."""
        return self._expected.get((what, "" if question is None else asked(question)))

    @contextmanager
    def stage(self, what: str, subject: str = "") -> Iterator[None]:
        """Everything inside is that stage, less the stages inside it."""
        before, begun = len(self._pieces), self._clock()
        try:
            yield
        finally:
            inner = sum(piece.seconds for piece in self._pieces[before:])
            self.took(what, subject, self._clock() - begun - inner)

    def took(self, what: str, subject: str, seconds: float) -> None:
        """Adds a stage that took so long."""
        grows = seconds if what not in ("start", "environment") else 0.0
        self._add(PieceCost(what=what, subject=subject, seconds=seconds, model_seconds=grows, units=self._units(what, None)))

    def saw(self, outcome: Outcome | None) -> None:
        """Takes in the memory that the child of a stage took, and whether it failed."""
        self._failed |= outcome is None or outcome.failure is not None
        self._phases += () if outcome is None else outcome.phases

    def answered(self, question: Question, outcome: Outcome) -> None:
        """Adds a question with its outcome. One that failed says nothing of how long it takes, and is left to the rest."""
        self.saw(outcome)
        shared = PROBES[question.probe].isolation == "shared"
        parts = {name: sum(p.seconds for p in outcome.phases if p.name == name) for name in APART} if shared else {}
        for name, seconds in parts.items():
            if seconds:
                self.took(name, "", seconds)
        if outcome.answer is None:
            return
        seconds = outcome.seconds - sum(parts.values())
        within = sum(p.seconds for p in outcome.phases if p.name not in (*parts, ALL))
        grows = min(seconds, float(outcome.answer.facts.get("model_seconds", 0.0)) or within)
        piece = PieceCost(
            what=question.probe,
            subject=question.subject,
            question=asked(question),
            seconds=seconds,
            model_seconds=grows,
            units=self._units(question.probe, question),
        )
        self._add(piece)

    def close(self, *, artifact: Path | None, kept: Sequence[Path]) -> CellCost:
        """All that the cell took. `artifact`: its folder, None where there is none; `kept`: what it keeps for others."""
        seconds = self._clock() - self._begun
        rest = seconds - sum(piece.seconds for piece in self._pieces)
        self._add(PieceCost(what=REST, subject="", seconds=max(0.0, rest), model_seconds=0.0, units=1.0))
        planned = self._planned
        return CellCost(
            cell=planned.cell,
            baseline=planned.baseline,
            started_at=self._started_at,
            seconds=seconds,
            pieces=tuple(self._pieces),
            questions=digest(planned.questions)[:16],
            whole=self._all and not self._failed,
            parameters=planned.parameters,
            estimated_bytes=planned.estimated_bytes,
            host_bytes=_most(self._phases, "host_peak"),
            host_start_bytes=min(
                (p.peak_bytes["host_start"] for p in self._phases if "host_start" in p.peak_bytes), default=None
            ),
            device_bytes=_most(self._phases, "device_reserved"),
            artifact_bytes=None if artifact is None else own_bytes(artifact),
            kept_bytes=sum(map(own_bytes, kept)) if planned.baseline else None,
            expected=self._forecast,
        )

    def _units(self, what: str, question: Question | None) -> float | None:
        return units(self._planned.cell, what, question)

    def _add(self, piece: PieceCost) -> None:
        expected = self._expected.get((piece.what, piece.question or piece.subject))
        self._pieces.append(replace(piece, expected=expected))


def own_bytes(folder: Path) -> int:
    """Bytes of the files in a folder that are no links; 0 where there is no folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _most(phases: Sequence[Phase], key: str) -> int | None:
    return max((phase.peak_bytes[key] for phase in phases if key in phase.peak_bytes), default=None)
