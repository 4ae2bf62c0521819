"""The data sets of the hub that tasks are made of, and what of them is asked. Without torch and lm-eval. Those that a task's own
Python fetches are not seen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from harness.models.data_sets import Part
from harness.probes import taskshots
from harness.probes.taskfiles import BUILDERS, HUB_ID, TaskConfig, configs, lm_eval_tasks

_OTHER_BUILDERS = ("pandas", "xml", "webdataset", "imagefolder", "audiofolder", "videofolder")
"""Other readers that `datasets` knows by name; no data set of the hub is meant by them."""

_WHOLE = {"revision", "trust_remote_code"}
"""What `dataset_kwargs` may hold of a data set that is asked for as it is: others (`data_files`) make another one of it."""


def hub_data(name: str, folder: Path | None = None) -> list[str]:
    """The data sets of the hub that a task, group or tag is made of, as `OWNER/NAME@REVISION` (`main` where the YAML names none),
    sorted."""
    return sorted({f"{source}@{_kwargs(config).get('revision') or 'main'}" for _, source, config in _of_the_hub(name, folder)})


def parts(name: str, folder: Path | None, shots: int | None) -> list[Part]:
    """What a task, group or tag asks of each data set of the hub: the split of its items, and that of its examples where it shows
    some. `shots`: as the suite has it."""
    wanted: list[Part] = []
    for path, source, config in _of_the_hub(name, folder):
        kwargs, config_name = _kwargs(config), config.get("dataset_name")
        revision = kwargs.get("revision")
        whole = not kwargs.keys() - _WHOLE
        part = Part(
            repo=source,
            revision=None if revision is None else str(revision),
            config=None if config_name is None else str(config_name),
            splits=_splits(config, path, shots) if whole else {},
            whole=whole,
        )
        wanted += [] if part in wanted else [part]
    return wanted


def shots_of(own: object, asked: int | None) -> int:
    """Examples in a prompt, where a task's `num_fewshot` is `own`: a task that fixes 0 keeps 0, None takes the task's number."""
    fixed = own if isinstance(own, int) else 0
    return fixed if asked is None or own == 0 else asked


def _splits(config: TaskConfig, path: Path, shots: int | None) -> dict[str, str]:
    """The splits that lm-eval reads (`ConfigurableTask`), by what names each."""
    key = "test_split" if config.get("test_split") else "validation_split"
    items = config.get(key)
    named = {f"{path}: {key}": items} if isinstance(items, str) else {}
    shown = taskshots.split_of(config) if shots_of(config.get("num_fewshot"), shots) else None
    if shown is not None and shown != items:
        named[f"{path}: the split of its examples"] = shown
    return named


def _kwargs(config: TaskConfig) -> dict[str, object]:
    given = config.get("dataset_kwargs")
    return given if isinstance(given, dict) else {}


def _of_the_hub(name: str, folder: Path | None) -> Iterator[tuple[Path, str, TaskConfig]]:
    """(YAML, data set, what it says) of those whose data come from the hub."""
    for path, config in configs(name, lm_eval_tasks() if folder is None else folder).items():
        source = config.get("dataset_path")
        if not isinstance(source, str) or config.get("custom_dataset") is not None or source in (*BUILDERS, *_OTHER_BUILDERS):
            continue
        if HUB_ID.fullmatch(source):
            yield path, source, config
