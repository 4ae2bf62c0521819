"""The data sets of the hub that a suite's texts and tasks are made of, looked at for `plan`: what they lack is known before hours
are spent, and no row of them is fetched."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from harness.errors import BadInput
from harness.models import hub
from harness.models.corpora import Corpus
from harness.models.data_sets import DataSets, Part
from harness.probes.requests import TaskRequest
from harness.suite.file import SuiteFile


def notes(written: SuiteFile, texts: Iterable[Corpus], tasks: Sequence[TaskRequest], *, cache: Path | None) -> tuple[str, ...]:
    """A line for each data set that could not be looked at. BadInput, with the line, for one that lacks what is asked of it, or
    that the hub does not give. `cache`: where what was seen is remembered."""
    from harness.probes import taskdata

    sets, unseen = DataSets(cache), []
    wanted = [(written.where("corpora"), f"corpus {text.name!r}", _part(text)) for text in texts if text.hub is not None]
    for index, task in enumerate(tasks):
        folder = None if task.folder is None else Path(task.folder)
        for part in taskdata.parts(task.name, folder, task.shots) if task.data_sets else ():
            wanted.append((written.where("tasks", index), f"task {task.name!r}", part))
    for place, what, part in wanted:
        try:
            seen = sets.check(part, what=what)
        except BadInput as error:
            raise BadInput(f"{place}: {error}") from None
        if not seen:
            unseen.append(
                f"{what}: {part.repo} was not looked at, because {hub.why_silent()}: what it lacks is known when it is fetched"
            )
    return tuple(dict.fromkeys(unseen))


def _part(text: Corpus) -> Part:
    """What a text of the hub asks of its data set."""
    assert text.hub is not None
    held = text.hub
    return Part(
        repo=held.repo, revision=held.revision, config=held.config, splits={"split": held.splits[text.use]}, column=held.column
    )
