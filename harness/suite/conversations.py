"""What is known before anything runs of how a suite asks its tasks: whether the models have the chat templates that are meant,
and which models are scored unlike they are served."""

from __future__ import annotations

from collections.abc import Sequence

from harness.errors import BadInput
from harness.models import chat
from harness.probes.requests import TaskRequest
from harness.suite.file import SuiteFile, TaskEntry
from harness.suite.sources import Source


def notes(written: SuiteFile, sources: Sequence[Source], tasks: Sequence[TaskRequest]) -> tuple[str, ...]:
    """A line for each model that has a chat template and is scored without it. BadInput, with the suite's line, where a model
    has not the template that is meant, or has one that leaves the system message out. What lies on a hub that cannot be reached
    is left to the run."""
    said: list[str] = []
    for source in sources if tasks else ():
        if source.of is not None or source.model.random:
            continue  # asked with the tokenizer of the model that it was made of; or not asked at all
        templates = chat.of_model(source.model)
        if templates is None:
            continue
        for index, task in enumerate(tasks):
            if task.prompting.template:
                _check(written, index, source, templates, task)
        without = [task.name for task in tasks if not task.prompting.template]
        if templates and without:
            said.append(
                f"model {source.name!r} has a chat template, and {_few(without)} {'is' if len(without) == 1 else 'are'} scored "
                "without it; to score it as it is served: chat_template: true"
            )
    return tuple(said)


def _check(written: SuiteFile, index: int, source: Source, templates: chat.Templates, task: TaskRequest) -> None:
    entry, model = written.suite.tasks[index], source.name
    own = isinstance(entry, TaskEntry) and entry.chat_template is not None
    where = written.where("tasks", index, "chat_template") if own else written.where("chat_template")
    template = chat.chosen(templates, task.prompting.template, f"{where}: model {model!r}")
    if why := chat.broken(template):
        wish = task.prompting.template
        file = chat.file_of(source.model, wish if isinstance(wish, str) else chat.DEFAULT)
        raise BadInput(
            f"{where}: model {model!r}: {file}: the chat template is broken: {why}; fetch or save the tokenizer again, or mend "
            "it, or take `chat_template` out"
        )
    system = task.prompting.system
    if system is not None and (why := chat.leaves_out(template, system)):
        raise BadInput(
            f"{where}: the chat template of model {model!r} takes no system message ({why}), so `system` would change nothing; "
            "take `system` out, and put what it says into the task"
        )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{len(names)} tasks"
