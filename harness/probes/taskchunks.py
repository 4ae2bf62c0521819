"""Some of a task's items at a time, through lm-eval's own `evaluate`, each with the prompt that it has when all are asked.

lm-eval's `samples=` would build requests for just those items, and draws few-shot examples from one generator while it builds:
the prompt of an item would then depend on which others are asked, and the cell would be compared with a baseline that saw another
one. So all requests are built once, as for the whole task, and `evaluate` is shown a selection of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from harness.probes.lm_eval_tasks import LoadedTasks, Results

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.task import Task

Evaluate: TypeAlias = Callable[[LoadedTasks], Results]
"""lm-eval's `evaluate`, all but the tasks given."""


class Chunks:
    """The requests of loaded and configured tasks, built once; `limit`: items of each."""

    def __init__(self, tasks: LoadedTasks, limit: int | None) -> None:
        self._tasks = tasks["tasks"]
        self._requests: dict[str, dict[int, list[Instance]]] = {}
        for name, task in self._tasks.items():
            task.build_all_requests(limit=limit)
            by_item = self._requests[name] = {}
            for request in task.instances:
                by_item.setdefault(request.doc_id, []).append(request)

    def __call__(self, items: Mapping[str, Sequence[int]], evaluate: Evaluate) -> Results:
        """lm-eval's results on these items (places in the data) of each named task, and on nothing else."""
        chosen = {name: self._tasks[name] for name, places in items.items() if places}
        for name, task in chosen.items():
            self._select(name, task, items[name])
        try:
            return evaluate({"tasks": chosen, "groups": {}, "group_map": {}})
        finally:
            for task in chosen.values():
                del task.build_all_requests, task.doc_iterator

    def _select(self, name: str, task: Task, places: Sequence[int]) -> None:
        """Hides the two methods of this task by which `evaluate` learns what to ask and of which items."""

        def build_all_requests(**_: object) -> None:
            task._instances = [request for place in places for request in self._requests[name][place]]

        def doc_iterator(**_: object) -> Iterator[tuple[int, object]]:
            return ((place, self._requests[name][place][0].doc) for place in places)

        task.build_all_requests, task.doc_iterator = build_all_requests, doc_iterator
