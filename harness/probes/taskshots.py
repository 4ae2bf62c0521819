"""How many examples a task has to show in a prompt, where its data lie here as JSON Lines. Without torch and lm-eval.

lm-eval draws them from `fewshot_split`, else from the training, validation or test split, the first that a task names
(`ConfigurableTask.fewshot_docs`); out of the items that are asked themselves, an item is never its own example.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from harness.probes import taskfiles
from harness.probes.taskfiles import TaskConfig

_LINES = (".jsonl", ".ndjson")


def examples(name: str, folder: Path) -> int | None:
    """The most examples that a prompt of every task under this name can show; None where the data do not lie here, or not as
    lines. `folder` holds the tasks."""
    known = []
    for path, config in taskfiles.configs(name, folder).items():
        count = _of(config, path)
        known += [] if count is None else [count]
    return min(known, default=None)


def split_of(config: TaskConfig) -> str | None:
    """The split that a task's examples are drawn from; None where it writes them out, or names no split."""
    settings = _settings(config)
    split = config.get("fewshot_split") or settings.get("split")
    if split is None and "samples" not in settings:
        split = next((config[key] for key in ("training_split", "validation_split", "test_split") if config.get(key)), None)
    return split if isinstance(split, str) else None


def _settings(config: TaskConfig) -> Mapping[str, object]:
    given = config.get("fewshot_config")
    return given if isinstance(given, dict) else {}


def _of(config: TaskConfig, path: Path) -> int | None:
    settings, own = _settings(config), config.get("dataset_kwargs")
    split = split_of(config)
    if split is None and "samples" in settings:
        return len(settings["samples"]) if isinstance(settings["samples"], list) else None
    files = own.get("data_files") if isinstance(own, dict) else None
    if config.get("dataset_path") != "json" or not isinstance(files, dict) or split is None:
        return None
    named = files.get(split)
    places = [path.resolve().parent / str(each) for each in (named if isinstance(named, list) else [named]) if each]
    if not places or any(place.suffix not in _LINES or not place.is_file() for place in places):
        return None
    count = sum(1 for place in places for line in place.read_bytes().split(b"\n") if line.strip())
    return count - (split == (config.get("test_split") or config.get("validation_split")))
