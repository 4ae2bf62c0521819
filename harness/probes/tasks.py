"""Accuracy on lm-eval's tasks: its prompts, filters and metrics unchanged, run through `lm_eval.evaluate` over the engine's own
LM.

`accuracy` is the task's `acc`, or `exact_match` where it has none, with its Wilson interval (on the effective number of items
where items share a passage); `accuracy_norm` is `acc_norm` where the task has it. A task of another kind gives `task_score`,
lm-eval's own aggregate. A group (mmlu) gives one number over the items of all its tasks. The side-car holds, per item, id,
correctness, log-likelihoods and margin; the baseline's also what the item asks, shortened.

Prompts stand as lm-eval makes them, or are turns of a conversation in the words of the model's chat template
(`prompting.py`); which, and the template's digest, is in the question and in the definition.

A cell that is asked until a verdict (`budget: auto`) answers a part of the items and gives what `sequential.py` measures, but no
`accuracy`.

Items whose log-likelihoods are NaN count as wrong and mark the cell; a model that answers NaN to most of them raises Nonfinite.

Version 1 (2026-11-21): first definition.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from harness.engines.base import Partial
from harness.errors import BadInput, Nonfinite, Unsupported
from harness.metrics.sequential import VerdictRequest
from harness.metrics.tasks import GROUP
from harness.models import build
from harness.probes import sequential
from harness.probes.base import Probe, Session
from harness.probes.blame import broken
from harness.probes.items import Item, baseline_items, said_of, side_car, text_of
from harness.probes.lm_eval_tasks import LoadedTasks, Results, evaluate, seed, templates
from harness.probes.prompting import Prompting, prompting_of
from harness.probes.requests import ProbeRequests
from harness.probes.taskchunks import Chunks
from harness.probes.taskdata import hub_data
from harness.probes.taskfiles import known_tasks, task_digest
from harness.probes.tasks_prepare import PREPARED, build_requests, configured, key_of, prepare
from harness.spec import DATA_SETS, Answer, Json, Measurement, Question, digest, to_json

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from lm_eval.api.task import Task

__all__ = ["PROBE", "hub_data", "known_tasks", "task_digest"]


CLUSTERS = ("cluster", "passage_id", "story_id", "document_id", "passage", "article", "story")
"""Fields of an item that say which items belong together, the first that is there counts; a task's `metadata.cluster` names its
own."""

_ACCURACIES = ("acc", "exact_match")


def questions(requests: ProbeRequests) -> list[Question]:
    """One question per task of the suite."""
    return [
        Question(
            probe="tasks",
            subject=task.name,
            options={
                "task": task.name,
                "shots": task.shots,
                "limit": task.limit,
                "task_digest": task.digest,
                **({DATA_SETS: dict.fromkeys(task.data_sets, "hub")} if task.data_sets else {}),
                **({} if task.verdict is None else sequential.options(task.verdict)),
                **task.prompting.options(),
            },
        )
        for task in requests.tasks
    ]


def measure(session: Session, question: Question) -> Answer:
    """Runs one task or group. Raises BadInput for a task that cannot be used or has no items, Nonfinite if nothing is finite."""
    name = str(question.options["task"])
    folder = session.task_folder(question)
    with templates(sandboxed=folder is not None):
        prepared, asked = PREPARED.pop(key_of(question, folder), None), prompting_of(question)
        tasks = prepared or configured(question, folder, session.cache)
        _check_items(tasks, name)
        _check_finite(session, name)
        lm = session.loaded.lm(plans=session.cache / "plans")
        seed()
        notes: list[str] = []
        if prepared is None or asked.template:  # a conversation is in the words of this model's tokenizer
            notes = build_requests(tasks, asked, session.loaded.tokenizer, question.options["limit"])
        verdict = sequential.settings(question)
        with _whole(lm, tasks):
            if verdict is not None:
                answer = _until_verdict(session, question, verdict, lm, tasks)
            else:
                results = evaluate(lm, tasks, question.options["limit"])
                outcomes = {task: _outcome(task, tasks["tasks"][task], results, asked) for task in results["samples"]}
                answer = _answer(session, name, outcomes, results)
    if notes:
        answer = replace(answer, facts={**answer.facts, "notes": notes})
    if any(task.OUTPUT_TYPE == "generate_until" for task in tasks["tasks"].values()) and not isinstance(session.loaded, Partial):
        rules = build.generation_config(session.model_dir).to_diff_dict()
        rules.pop("transformers_version", None)
        answer = replace(answer, facts={**answer.facts, "decoding": to_json(rules)})
    if DATA_SETS in question.options:
        answer = replace(answer, facts={**answer.facts, DATA_SETS: question.options[DATA_SETS]})
    report = getattr(lm, "report", None)
    return answer if report is None else Answer(measurements=answer.measurements, facts={**answer.facts, "lm": report()})


PROBE = Probe(
    name="tasks",
    title=GROUP.title,
    version="1",
    metrics=GROUP.metrics,
    isolation="shared",
    questions=questions,
    measure=measure,
    preload=("lm_eval.tasks", "lm_eval.evaluator", "harness.scoring.lm", "harness.stats"),
    needs_weights=True,
    prepare=prepare,
)


def _check_items(tasks: LoadedTasks, name: str) -> None:
    for task_name, task in tasks["tasks"].items():
        if len(task.eval_docs) == 0:
            raise BadInput(f"task {name!r}: {task_name} has no items; check its data file and split")
    if not tasks["tasks"]:
        raise BadInput(f"task {name!r} names no tasks")


def _whole(lm: LM, tasks: LoadedTasks) -> AbstractContextManager[None]:
    """Inside, no input is cut where a task's `metadata.whole` says that none may be."""
    from harness.scoring.requests import RequestsLM

    said = [getattr(task, "config", None) for task in tasks["tasks"].values()]
    wanted = any((config.metadata or {}).get("whole") for config in said if config is not None)
    return lm.whole() if wanted and isinstance(lm, RequestsLM) else nullcontext()


def _check_finite(session: Session, name: str) -> None:
    """One short forward: a model that answers NaN would be given a number by greedy generation (NaN's argmax is a token)."""
    import numpy as np

    if isinstance(session.loaded, Partial):
        return  # a server may take no such ids and show no log-probabilities: there is nothing to look at
    if "answers" not in session.memo:  # once for all tasks of a cell
        scores = next(iter(session.loaded.score_windows([list(range(1, 17))], None)))
        session.memo["answers"] = bool(np.isfinite(scores.nll).any())
    if not session.memo["answers"]:
        raise Nonfinite(f"{session.cell.name}: the model answers NaN or infinity to {name!r}; {broken(session)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOutcome:
    """What one task gave. `metric` is lm-eval's name of its accuracy, None where it knows no right and wrong; `filter` the filter
    whose answers count; `title` and `suffix` are put around the metric's name to make a definition."""

    task: str
    metric: str | None
    filter: str
    norm: bool
    items: tuple[Item, ...]
    title: str
    suffix: str


def _outcome(name: str, task: Task, results: Results, asked: Prompting) -> TaskOutcome:
    samples = results["samples"][name]
    if not samples:
        raise BadInput(f"task {name!r} has no items; check its data and `limit`")
    first = str(samples[0]["filter"])
    samples = [sample for sample in samples if sample["filter"] == first]
    metric = next((m for m in _ACCURACIES if m in samples[0]), None)
    version = results["versions"].get(name)
    shots = results["n-shot"].get(name, 0)
    field = ((task.config.metadata or {}).get("cluster")) if hasattr(task, "config") else None
    seen: dict[str, int] = {}
    items = []
    for sample in samples:
        key = str(sample["doc_hash"])[:16]
        seen[key] = seen.get(key, 0) + 1
        items.append(_item(sample, metric, key if seen[key] == 1 else f"{key}#{seen[key]}", task, field))
    return TaskOutcome(
        task=name,
        metric=metric,
        filter=first,
        norm="acc_norm" in samples[0],
        items=tuple(items),
        title=f"lm-eval {name} {'unversioned' if version in (None, 'Yaml') else f'v{version}'}",
        suffix=f"{'' if first == 'none' else f' ({first})'}, {shots}-shot{asked.said(task, shots=shots)}",
    )


def _item(sample: Mapping[str, Json], metric: str | None, key: str, task: Task, field: str | None) -> Item:
    """One of lm-eval's samples; `field` names what its cluster is read from."""
    item = Item(
        id=key,
        doc=sample["doc_id"],
        correct=None if metric is None else float(sample[metric]),
        correct_norm=float(sample["acc_norm"]) if "acc_norm" in sample else None,
        cluster=_cluster(sample["doc"], field),
        text=text_of(sample["arguments"], sample["target"], choices=task.OUTPUT_TYPE == "multiple_choice"),
    )
    if task.OUTPUT_TYPE == "generate_until":
        item = replace(item, said=said_of(sample["resps"][0][0]))
    if task.OUTPUT_TYPE != "multiple_choice":
        return item
    scores = tuple(float(responses[0][0]) for responses in sample["resps"])
    item = replace(item, loglikelihoods=scores)
    if any(math.isnan(score) for score in scores):
        item = replace(item, nonfinite=True, correct=0.0, correct_norm=None if item.correct_norm is None else 0.0)
    gold = _gold(sample, task)
    if gold is not None and 0 <= gold < len(scores) and len(scores) > 1:
        margin = scores[gold] - max(score for i, score in enumerate(scores) if i != gold)
        item = replace(item, gold=gold, margin=margin)
    return item


def _gold(sample: Mapping[str, Json], task: Task) -> int | None:
    target = sample["target"]
    if isinstance(target, int):
        return target
    choices: list[str] | None = task.doc_to_choice(sample["doc"]) if isinstance(target, str) else None
    return choices.index(target) if choices and target in choices else None


def _cluster(doc: object, field: str | None) -> str | None:
    """What an item shares with others, shortened: the value itself, or its digest where it is long."""
    if not isinstance(doc, dict):
        return None
    names: Sequence[str] = CLUSTERS if field is None else (field,)
    value = next((doc[name] for name in names if isinstance(doc.get(name), (str, int))), None)
    if value is None:
        return None
    text = str(value)
    return text if len(text) <= 32 else digest(text)[:16]


def _until_verdict(session: Session, question: Question, verdict: VerdictRequest, lm: LM, tasks: LoadedTasks) -> Answer:
    """The cell's items against the baseline's, in chunks, until the verdict; see `sequential.until_verdict`."""
    name, base = str(question.options["task"]), baseline_items(session.baseline_items(question))
    asked = prompting_of(question)
    chunks = Chunks(tasks, question.options["limit"])
    only = next(iter(tasks["tasks"]))  # items name their task only where there are several

    def score(wanted: Sequence[Item]) -> list[Item]:
        places: dict[str, list[int]] = {}
        for item in wanted:
            places.setdefault(item.task or only, []).append(item.doc)
        results = chunks(places, lambda chosen: evaluate(lm, chosen, None))
        outcomes = [_outcome(task, tasks["tasks"][task], results, asked) for task in places]
        answered = {(outcome.task, item.doc): item for outcome in outcomes for item in outcome.items}
        return [_as_the_baseline(answered[item.task or only, item.doc], item) for item in wanted]

    def keep(items: Sequence[Item]) -> str:
        kept = [replace(item, text=None) for item in items]
        return session.blob("items", side_car(kept, task=name, metric=base.metric, order="shared"), "json")

    scored = sequential.until_verdict(verdict, base.items, score, definition=base.definition, keep=keep)
    marks = _marks(session, name, scored.items)
    return Answer(measurements=scored.measurements, facts={**marks, sequential.KEY: asdict(scored.facts)})


def _as_the_baseline(item: Item, base: Item) -> Item:
    """The item under the name that the baseline gives it. Equal items are told apart by their order among all (`#2`), which a
    part of them does not know; an item of other content keeps its own name."""
    same = base.id.rpartition("|")[2].partition("#")[0] == item.id.partition("#")[0]
    return replace(item, task=base.task, id=base.id if same else item.id)


def _marks(session: Session, name: str, items: Iterable[Item]) -> dict[str, object]:
    """How many items there are, and how many of them have no finite answer; Nonfinite if most have none."""
    lost = [item.nonfinite for item in items]
    if 2 * sum(lost) > len(lost):
        some = "every item" if all(lost) else f"{sum(lost)} of {len(lost)} items"
        raise Nonfinite(f"{session.cell.name}: {some} of {name!r} have NaN log-likelihoods; {broken(session)}")
    return {"items": len(lost), **({"marked": "nonfinite", "nonfinite_items": sum(lost)} if any(lost) else {})}


def _answer(session: Session, name: str, outcomes: Mapping[str, TaskOutcome], results: Results) -> Answer:
    items = [
        replace(item, task=outcome.task, id=f"{outcome.task}|{item.id}") if len(outcomes) > 1 else item
        for outcome in outcomes.values()
        for item in outcome.items
    ]
    facts = _marks(session, name, items)
    metrics = {outcome.metric for outcome in outcomes.values()}
    if metrics == {None}:
        return Answer(measurements=_scores(name, outcomes, results), facts=facts)
    if None in metrics or len(metrics) > 1:
        raise Unsupported(f"group {name!r} mixes tasks with and without accuracy; name its tasks one by one")
    metric = str(metrics.pop())
    title, suffix = _title(name, outcomes, results)
    if not session.is_baseline:  # it keeps what was asked, for all cells
        items = [replace(item, text=None) for item in items]
    blob = session.blob("items", side_car(items, task=name, metric=metric), "json")
    definition = f"{title} {metric}{suffix}"
    measured = [_accuracy("accuracy", [item.correct or 0.0 for item in items], items, definition, blob)]
    if all(outcome.norm for outcome in outcomes.values()):
        correct = [item.correct_norm or 0.0 for item in items]
        measured.append(_accuracy("accuracy_norm", correct, items, f"{title} acc_norm{suffix}", blob))
    if len(outcomes) > 1:
        facts["tasks"] = {
            outcome.task: {
                "items": len(outcome.items),
                "accuracy": sum(item.correct or 0.0 for item in outcome.items) / len(outcome.items),
            }
            for outcome in outcomes.values()
        }
        own = results.get("groups", {}).get(name, {}).get(f"{metric},{next(iter(outcomes.values())).filter}")
        facts["lm_eval_aggregate"] = None if own is None else float(own)
    return Answer(measurements=tuple(measured), facts=facts)


def _title(name: str, outcomes: Mapping[str, TaskOutcome], results: Results) -> tuple[str, str]:
    """(`lm-eval NAME vX`, `, N-shot`) of a task, or of a group with how many tasks it holds."""
    first = next(iter(outcomes.values()))
    if len(outcomes) == 1:
        return first.title, first.suffix
    version = results["versions"].get(name)
    suffixes = sorted({outcome.suffix for outcome in outcomes.values()})
    said = "unversioned" if version is None else f"v{version}"
    return f"lm-eval {name} {said} ({len(outcomes)} tasks, over all items)", suffixes[0] if len(suffixes) == 1 else ""


def _accuracy(metric: str, correct: Sequence[float], items: Sequence[Item], definition: str, blob: str) -> Measurement:
    from harness import stats

    clusters = [f"#{place}" if item.passage is None else item.passage for place, item in enumerate(items)]
    if any(value not in (0.0, 1.0) for value in correct):
        interval = stats.block_bootstrap_mean(correct)  # partial credit, or several repeats averaged
    else:
        interval = stats.accuracy(correct, clusters)
    return Measurement(
        metric=metric,
        value=interval.value,
        low=interval.low,
        high=interval.high,
        n=len(items),
        definition=definition,
        unit="share",
        blob=blob,
    )


def _scores(name: str, outcomes: Mapping[str, TaskOutcome], results: Results) -> tuple[Measurement, ...]:
    """lm-eval's own aggregate of tasks that know no right and wrong (perplexity, F1, BLEU)."""
    if len(outcomes) > 1:
        raise Unsupported(f"group {name!r} has no accuracy; name its tasks one by one")
    outcome = next(iter(outcomes.values()))
    own = results["results"][outcome.task]
    for key, value in own.items():
        metric, _, filtered = key.partition(",")
        if filtered == outcome.filter and not metric.endswith("_stderr") and isinstance(value, (int, float)):
            definition = f"{outcome.title} {metric}{outcome.suffix}"
            n = len(outcome.items)
            return (Measurement(metric="task_score", value=float(value), n=n, definition=definition, unit=""),)
    raise Unsupported(f"task {name!r} gives no number")
