"""The forecast of a plan before it runs: what is stored and cached already, and what this machine took before."""

from __future__ import annotations

from pathlib import Path

from harness import store
from harness.forecast import history
from harness.forecast.estimate import Forecast, forecast
from harness.measure import machine, rate
from harness.models import find
from harness.run import identity, left
from harness.run.only import question_name
from harness.run.recorder import same_context
from harness.spec import Json, Question
from harness.suite.plan import Plan

CHANGES_NUMBERS = False
"""It says what will be done, and does nothing."""


def before_run(plan: Plan, *, results: Path, cache: Path, threads: int | None) -> tuple[Forecast, list[str]]:
    """What `run` would take now, and the run files that could not be read for it, each with the reason. Fetches and
    writes nothing: what is stored for a model that was never run here is not known, and counts as not stored."""
    used = threads or len(machine.affinity())
    inputs = identity.at_hand(plan, cache.expanduser().resolve())
    here = history.Here(host=machine.host_id(), device=plan.device.split(":")[0], threads=used)
    known = history.read(results, here)
    questions = [p.questions for p in plan.cells] if inputs is None else _unanswered(inputs, results, used)
    todo = left.todo(plan, questions, inputs)
    return forecast(todo, known, device=plan.device, rate=rate.for_device(plan.device)), known.unread


def hash_again(plan: Plan, cache: Path) -> None:
    """Reads every byte of the models that are here, whatever is remembered of them; what is found is remembered."""
    place = cache.expanduser().resolve()
    identity.forget(place)
    for model in plan.models:
        folder = find.locate(model)
        if folder is not None:
            find.weights_digest(folder, place / identity.DIGESTS)


def _unanswered(inputs: identity.Inputs, results: Path, threads: int) -> list[tuple[Question, ...]]:
    """The questions of each cell that the run file which `run` would go on with does not answer."""
    plan = inputs.plan
    context = identity.context(plan, packages=inputs.packages, threads=threads).digest
    path = same_context(results / plan.suite.name, context)
    stored = set() if path is None else {record.key for record in store.read(path).records}
    return [tuple(q for q in p.questions if inputs.key(p.cell, q) not in stored) for p in plan.cells]


def add_keys(asked: Json, plan: Plan, *, cache: Path) -> None:
    """Puts into the plan's JSON, beside each question, its `name` and its `key`, by either of which `run --only` asks it. The key
    is null where a model or a text is not here yet: it is a digest of these."""
    inputs = identity.at_hand(plan, cache.expanduser().resolve())
    for planned, shown in zip(plan.cells, asked["cells"], strict=True):
        for question, row in zip(planned.questions, shown["questions"], strict=True):
            row["name"] = question_name(planned.cell, question)
            row["key"] = None if inputs is None else inputs.key(planned.cell, question)
