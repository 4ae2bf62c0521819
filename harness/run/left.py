"""What is left of a plan: questions that have no answer, and what must be done before they can be asked."""

from __future__ import annotations

from collections.abc import Sequence

from harness import envs
from harness.artifact import verified
from harness.forecast.work import Todo
from harness.methods import METHODS
from harness.models import source
from harness.probes import PROBES
from harness.run.identity import Inputs, on_own_text
from harness.run.workspace import whole
from harness.spec import Cell, Question, Served
from harness.suite.plan import Plan, PlannedCell

CHANGES_NUMBERS = False
"""It says what will be done, and does nothing."""


def todo(plan: Plan, questions: Sequence[Sequence[Question]], inputs: Inputs | None) -> list[Todo]:
    """For each cell of the plan what is left, given its unanswered `questions`. Without `inputs` (a model is not here yet)
    nothing is taken to be in the cache."""
    begun: set[tuple[str, str]] = set()  # what cells share is done for the first that needs it
    left = []
    for planned, wanted in zip(plan.cells, questions, strict=True):
        stages = _shared(planned.cell, inputs, plan.device)
        shared = [stage for stage in stages if wanted and (stage[0], _whose(stage, planned)) not in begun]
        begun |= {(stage[0], _whose(stage, planned)) for stage in shared}
        own = _own(planned, wanted, inputs) if wanted else []
        left.append(Todo(planned=planned, questions=tuple(wanted), stages=(*shared, *own)))
    return left


def _whose(stage: tuple[str, str], planned: PlannedCell) -> str:
    return stage[1] or planned.cell.model.name


def _shared(cell: Cell, inputs: Inputs | None, device: str) -> list[tuple[str, str]]:
    """Stages that are done once for several cells: environments built, their processes started, the model's folder read, text
    that the model writes."""
    method = METHODS[cell.method]
    places = envs.made_and_answered(cell, device)
    here = {envs.MAIN, *(place for place in places if inputs is not None and inputs.installed_in(place) is not None)}
    stages = [("environment", place) for place in places if place not in here]
    stages += [("start", place) for place in places]
    if "transformers" in method.modules and not isinstance(cell.origin, Served):
        known = inputs is not None and source.known(inputs.view(cell.model.name)) is not None
        stages += [] if known else [("source", "")]
    if on_own_text(cell):
        text = None if inputs is None else inputs.calibration(cell)
        stages += [] if text is not None and text.is_file() else [("sample", "")]
    return stages


def _own(planned: PlannedCell, questions: Sequence[Question], inputs: Inputs | None) -> list[tuple[str, str]]:
    """The cell's own: its artifact made, loaded and checked. What loads it by itself (memory, latency) counts that as its own."""
    cell = planned.cell
    artifact = None if inputs is None else inputs.artifact(cell)
    made = artifact is not None and inputs is not None and whole(artifact, inputs.model_dir(inputs.source(cell)))
    stages = [] if made else [("quantize", "")]
    if any(PROBES[q.probe].isolation == "shared" and PROBES[q.probe].needs_model for q in questions):
        stages.append(("load", ""))
    checked = made and artifact is not None and verified(artifact, cell.running).is_file()
    if not checked and any(PROBES[q.probe].needs_model for q in questions):
        stages.append(("verify", ""))
    return stages
