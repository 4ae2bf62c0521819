"""lm-eval's tasks as they are: loading, configuring and evaluating one, with the parts of lm-eval that this needs."""

from __future__ import annotations

import contextlib
import functools
import itertools
import random
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict

from harness.errors import BadInput, Unsupported
from harness.models import hub
from harness.probes import taskfiles
from harness.probes.taskdata import shots_of
from harness.probes.taskfiles import TaskConfig

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from lm_eval.api.task import Task


class LoadedTasks(TypedDict):
    """What lm-eval calls a task dict: the tasks that a name stands for, by their names, and how groups hold them."""

    tasks: Mapping[str, Task]
    groups: Mapping[str, object]
    group_map: Mapping[str, object]


Results: TypeAlias = Mapping[str, Any]
"""What `lm_eval.evaluate` returns: "samples", "results", "versions", "n-shot" by task, "groups" by group."""


def load(name: str, folder: Path | None, cache: Path, shots: int | None, commits: Mapping[str, str] | None = None) -> LoadedTasks:
    """The tasks of a name. Only the YAMLs that it needs are indexed: all of them take ten
    seconds.

    `folder`: where a foreign task lies; its YAMLs are checked, and its data read through `cache`. `shots`: what `configure` will
    be asked for; where there are none, lm-eval is spared listing the documents to draw examples from. `commits`: those of the
    hub's data sets, by `OWNER/NAME@REVISION`; a data set is read at its commit and at no other.
    """
    import datasets
    from datasets.exceptions import DatasetsError
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._index import TaskIndex

    datasets.disable_progress_bars()
    root = taskfiles.lm_eval_tasks() if folder is None else folder
    configs = taskfiles.configs(name, root)
    manager = TaskManager(include_defaults=False)
    for path, config in configs.items():
        if folder is not None:
            taskfiles.check(config, path, root)
            _check_metrics(config, path)
            config = taskfiles.localized(config, path, root, cache)
            if len(configs) == 1 and shots_of(config.get("num_fewshot"), shots) == 0:  # a group may give its tasks examples
                config.setdefault("fewshot_config", {"samples": []})
        TaskIndex.process_cfg(config, path, manager.task_index)
        entry = manager.task_index.get(str(config.get("group") or config.get("task")))
        if folder is not None and entry is not None:
            # Built from the checked config instead of being read once more; lm-eval resolves the functions of its own.
            entry.yaml_path, entry.cfg = None, config
    if name not in manager.task_index:
        raise BadInput(f"{root}: lm-eval finds no task, group or tag {name!r} in {', '.join(map(str, configs))}")
    try:
        with _at_commits(commits or {}):
            loaded: LoadedTasks = manager.load([name])
    except (OSError, ConnectionError) as error:  # datasets' and the hub's errors are of these kinds
        raise Unsupported(f"task {name!r}: its data set cannot be had here: {error}") from error
    except (DatasetsError, StopIteration, ValueError) as error:
        # A file with no rows at all ends datasets' reader with a bare StopIteration.
        reason = str(error) or "there is nothing in it"
        first = next(iter(configs))
        raise BadInput(f"task {name!r}: its data cannot be read: {reason}; check the files that {first} names") from error
    except Exception as error:
        if not _bare(error):
            raise
        raise _refused(error, f"task {name!r}: lm-eval cannot build it", next(iter(configs))) from error
    return loaded


_CAUSES: tuple[tuple[str, str, str], ...] = (
    ("IndexError", "string index", "a choice is empty; give each one a text"),
    ("ValueError", "Sample larger than population", "it has fewer examples than `shots` asks for; ask for fewer"),
    ("UnscorableRequest", "", "a choice adds no token to its context, or more than the model takes; give it another text"),
    ("SecurityError", "", "a template reaches for Python, which a task may not; take that out"),
    ("KeyError", "", "its rows have no such field; compare the fields that its templates name with its data"),
    ("UndefinedError", "", "its rows have no such field; compare the fields that its templates name with its data"),
)
"""What bare errors come from, as seen: kind, part of the message, likely cause."""

_BARE = (LookupError, TypeError, ValueError, AttributeError, AssertionError, ArithmeticError)
"""What Python and lm-eval raise at a task that does not fit its data. No memory that ran out, no disk that is full."""


def _bare(error: Exception) -> bool:
    return isinstance(error, _BARE) or type(error).__module__.startswith("jinja2.")


def _refused(error: Exception, what: str, where: Path | None = None) -> BadInput:
    """A sentence for an error that lm-eval leaves as Python raised it."""
    known = (cause for kind, part, cause in _CAUSES if type(error).__name__ == kind and part in str(error))
    cause = next(known, "compare its templates and functions with the rows of its data")
    place = f" ({where})" if where else ""
    kind = "" if type(error).__name__ == "UnscorableRequest" else f"{type(error).__name__}: "
    return BadInput(f"{what}{place}: {kind}{error}; likely {cause}")


def _by_lm_eval(error: Exception) -> bool:
    """Whether an error comes from lm-eval, or from what it calls, and not from a scorer of this package that it called."""
    frames = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    within = list(itertools.dropwhile(lambda name: "lm_eval" not in name.parts, frames))
    return bool(within) and not any(name.is_relative_to(_HARNESS) for name in within)


_HARNESS = Path(__file__).parent.parent


@contextlib.contextmanager
def _at_commits(commits: Mapping[str, str]) -> Iterator[None]:
    """lm-eval asks `datasets` for the data sets of its tasks by name alone; meanwhile they come from their commits."""
    import datasets

    plain = datasets.load_dataset

    def load_dataset(path: str, name: str | None = None, *, revision: str | None = None, **options: Any) -> Any:
        commit = commits.get(f"{path}@{revision or 'main'}")
        if commit is None:
            return plain(path, name, **({} if revision is None else {"revision": revision}), **options)
        return hub.rows(path, name, commit, load=plain, **options)

    datasets.load_dataset = load_dataset
    try:
        yield
    finally:
        datasets.load_dataset = plain


def configure(tasks: LoadedTasks, shots: int | None) -> None:
    """Few-shot examples as `lm_eval.simple_evaluate` sets them: a task that fixes 0 keeps 0, None takes the task's own number."""
    from lm_eval.defaults import DEFAULT_OTHER_SEED

    for task in tasks["tasks"].values():
        task.set_config(key="num_fewshot", value=shots_of(task.get_config("num_fewshot"), shots))
        task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)


def seed() -> None:
    """As `lm_eval.simple_evaluate` does before it builds its requests."""
    import numpy as np
    import torch
    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED

    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)
    torch.manual_seed(DEFAULT_OTHER_SEED)


def evaluate(lm: LM, tasks: LoadedTasks, limit: int | None) -> Results:
    """`lm_eval.evaluate`; per-item samples kept, no bootstrap of its own. BadInput for a task that lm-eval itself cannot ask."""
    from lm_eval.evaluator import evaluate

    with named(tasks):
        results: Results = evaluate(lm=lm, task_dict=tasks, limit=limit, bootstrap_iters=0, log_samples=True)
    return results


@contextlib.contextmanager
def named(tasks: LoadedTasks) -> Iterator[None]:
    """Inside, an error that lm-eval leaves as Python raised it becomes a BadInput that names the tasks and the likely cause."""
    from harness.scoring.plan import UnscorableRequest

    try:
        yield
    except Exception as error:
        if not isinstance(error, UnscorableRequest) and not (_bare(error) and _by_lm_eval(error)):
            raise
        names = ", ".join(repr(name) for name in tasks["tasks"])
        raise _refused(error, f"task {names}: lm-eval cannot ask it") from error


@contextlib.contextmanager
def templates(*, sandboxed: bool) -> Iterator[None]:
    """lm-eval's templates, each compiled once: it compiles a template again for every item and field, which is half of a small
    task's time. Foreign ones run in Jinja's sandbox: in lm-eval's plain environment a hostile one reaches all of Python."""
    import lm_eval.utils
    from jinja2 import Environment
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    plain = lm_eval.utils.env
    kind = ImmutableSandboxedEnvironment if sandboxed else Environment
    once = kind(loader=plain.loader, undefined=plain.undefined, keep_trailing_newline=plain.keep_trailing_newline)
    once.filters.update(plain.filters)
    compiled = functools.lru_cache(maxsize=256)(once.from_string)
    once.from_string = compiled  # type: ignore[assignment, method-assign]  # on this one environment, for a while
    lm_eval.utils.env = once
    try:
        yield
    finally:
        lm_eval.utils.env = plain


def _check_metrics(config: TaskConfig, path: Path) -> None:
    """lm-eval looks for metrics that it does not know on the hub, where they are code."""
    from lm_eval.api import metrics  # noqa: F401  (fills the registry)
    from lm_eval.api.registry import metric_registry

    for entry in taskfiles.dicts(config.get("metric_list")):
        if entry.get("metric") not in metric_registry:
            raise BadInput(f"{path}: lm-eval has no metric {entry.get('metric')!r}, and none is fetched from the hub")
