"""What a data set of the hub holds, for `plan`: its configurations, their splits, a configuration's columns, without its rows.

`datasets` itself says it, of the card and the list of files alone, so that what is refused here is what it would refuse at the
run. Columns that no card tells are read from the beginning of one file. One look for each repository and commit; what was seen
is remembered in the harness' cache, where it never gets old: a commit does not change.
"""

from __future__ import annotations

import contextlib
import csv
import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.decode import decode
from harness.errors import BadInput
from harness.files import write_atomically
from harness.models import hub
from harness.spec import digest

if TYPE_CHECKING:
    from datasets import DatasetBuilder

VERSION = 1
"""Raised when the same commit is seen as something else."""

SHOWN = 12
"""So many names are listed in a message."""

FIRST_BYTES = 1 << 16
"""Of a file of rows, to find the names of its columns in."""


class _Silent(Exception):
    """The hub was asked and did not answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What is asked of a data set. `config`: None for its default. `splits` by the key of the suite or task that names each.
    `column`: None where no one is asked for. `whole`: whether it is asked for as it is, its files not named one by one."""

    repo: str
    revision: str | None = None
    config: str | None = None
    splits: Mapping[str, str]
    column: str | None = None
    whole: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """A data set at a commit. `splits` of each configuration by its name, none where they are known once it is read. `default`:
    the configuration of those who name none, None where one has to be named."""

    splits: Mapping[str, tuple[str, ...]]
    default: str | None


class DataSets:
    """The data sets of a plan, each looked at once. `cache`: where what was seen is remembered."""

    def __init__(self, cache: Path | None) -> None:
        self._cache = cache
        self._snapshots: dict[tuple[str, str | None], hub.Snapshot | None] = {}
        self._contents: dict[hub.Snapshot, Contents | None] = {}

    def check(self, part: Part, *, what: str) -> bool:
        """BadInput where the data set does not hold what is asked for, or the hub does not give it; False where it was not looked
        at, because the hub cannot be reached. `what` begins a message: "corpus 'mine'"."""
        snapshot = self._snapshot(part, what)
        if snapshot is None or not part.whole:
            return snapshot is not None
        if snapshot not in self._contents:
            self._contents[snapshot] = _contents(snapshot, what, self._cache)
        held = self._contents[snapshot]
        if held is None:
            return False
        config = _config(part, held, what)
        place = part.repo + (f" ({config})" if len(held.splits) > 1 else "")
        for key, split in part.splits.items():
            for name in _names(split):
                if held.splits[config] and name not in (*held.splits[config], "all"):
                    raise BadInput(f"{what}: {key}: {place} has no split {name!r}{_instead(name, held.splits[config])}")
        if part.column is not None:
            _check_column(_columns(snapshot, config, what, self._cache), part.column, f"{what}: {place}")
        return True

    def _snapshot(self, part: Part, what: str) -> hub.Snapshot | None:
        """The data set at its commit, None where the hub does not say it. A hub that did not answer once is not waited for
        again."""
        place = (part.repo, part.revision)
        if place not in self._snapshots:
            silent = not hub.offline() and None in self._snapshots.values()
            commit = None if silent else hub.commit(part.repo, part.revision, kind="dataset", what=what)
            if commit is not None:
                hub.check_access(part.repo, kind="dataset", what=what)
            self._snapshots[place] = None if commit is None else hub.Snapshot(repo=part.repo, commit=commit, kind="dataset")
        return self._snapshots[place]


def _config(part: Part, held: Contents, what: str) -> str:
    """The configuration that is asked for."""
    config = part.config if part.config is not None else held.default
    if config is None:
        raise BadInput(f"{what}: {part.repo} has several configurations, and none is named; name one of {_listed(held.splits)}")
    if config not in held.splits:
        raise BadInput(f"{what}: {part.repo} has no configuration {config!r}{_instead(config, held.splits)}")
    return config


def _names(split: str) -> list[str]:
    """The splits that `datasets` takes together for `train[:10%]+test`."""
    return [re.sub(r"\[.*\]", "", name).strip() for name in split.split("+")]


def _instead(wrong: str, known: Sequence[str] | Mapping[str, object]) -> str:
    near = difflib.get_close_matches(wrong, list(known), n=1, cutoff=0.6)
    meant = f"did you mean {near[0]!r}? " if near else ""
    return f"; {meant}{'I' if meant else 'i'}t has {_listed(known)}"


def _listed(known: Sequence[str] | Mapping[str, object]) -> str:
    names = list(known)
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _remembered(snapshot: hub.Snapshot, cache: Path | None, *more: str) -> Path | None:
    key = digest([snapshot.repo, snapshot.commit, VERSION, *more])[:32]
    return None if cache is None else cache / "data-sets" / f"{key}.json"


def _keep(memo: Path | None, value: object) -> None:
    if memo is not None:
        memo.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(memo, json.dumps(value))


def _contents(snapshot: hub.Snapshot, what: str, cache: Path | None) -> Contents | None:
    """None where the hub cannot be reached and nobody has looked before."""
    memo = _remembered(snapshot, cache)
    if memo is not None and memo.is_file():
        return decode(Contents, json.loads(memo.read_text(encoding="utf-8")))
    if hub.offline():
        return None
    found = None
    with contextlib.suppress(_Silent), _asked(snapshot, what):
        found = _looked_at(snapshot)
    if found is not None:
        _keep(memo, asdict(found))
    return found


def _looked_at(snapshot: hub.Snapshot) -> Contents | None:
    import datasets

    names = datasets.get_dataset_config_names(snapshot.repo, revision=snapshot.commit)
    held = _builder(snapshot, names[0])
    if held is None:
        return None
    splits = {name: tuple(map(str, config.data_files or ())) for name, config in held.builder_configs.items()}
    if not splits:  # no card names any: the one that the library makes of the files
        splits = {held.config.name: tuple(map(str, held.config.data_files or ()))}
    default = held.DEFAULT_CONFIG_NAME
    only = next(iter(splits)) if len(splits) == 1 else None
    return Contents(splits=splits, default=default if default in splits else only)


def _builder(snapshot: hub.Snapshot, config: str) -> DatasetBuilder | None:
    """What `datasets` knows of a configuration without its rows; None where it fell back to rows of another commit."""
    import datasets

    held = datasets.load_dataset_builder(snapshot.repo, config, revision=snapshot.commit)
    return None if type(held).__module__ == "datasets.packaged_modules.cache.cache" else held


@contextlib.contextmanager
def _asked(snapshot: hub.Snapshot, what: str) -> Iterator[None]:
    """Inside, what `datasets` raises at a data set is a BadInput, and it draws no progress."""
    from datasets.utils import logging

    drawn, said = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with hub.no_bars():
            yield
    except (ValueError, RuntimeError, FileNotFoundError) as error:  # no files that it reads; a script, which is never run
        why = " ".join(str(error).split())[:200]
        raise BadInput(f"{what}: {snapshot.repo} is no data set that `datasets` reads: {why}; name another one") from None
    except Exception as error:  # the library's, the hub's and its HTTP client's own types
        if hub.no_answer(error):
            raise _Silent from None
        raise hub.refusal(error, snapshot.repo, snapshot.commit, kind="dataset", what=what) from None
    finally:
        logging.set_verbosity(said)
        if drawn:
            logging.enable_progress_bar()


def _check_column(columns: Mapping[str, bool], wanted: str, what: str) -> None:
    """BadInput where there is no such column, or one that holds no text. Nothing is said where the columns are known only once
    the rows are read."""
    if columns and wanted not in columns:
        raise BadInput(f"{what} has no column {wanted!r}{_instead(wanted, columns)}; name one with `column`")
    if columns and not columns[wanted]:
        texts = [name for name, is_text in columns.items() if is_text]
        instead = f"of text are {_listed(texts)}; name one with `column`" if texts else "no column of it does"
        raise BadInput(f"{what}: column {wanted!r} holds no text; {instead}")


def _columns(snapshot: hub.Snapshot, config: str, what: str, cache: Path | None) -> dict[str, bool]:
    """The columns by name, and whether each may hold text; {} where that is not known without reading the rows."""
    memo = _remembered(snapshot, cache, config, "columns")
    if memo is not None and memo.is_file():
        return {str(name): bool(is_text) for name, is_text in json.loads(memo.read_text(encoding="utf-8")).items()}
    if hub.offline():
        return {}
    with contextlib.suppress(_Silent), _asked(snapshot, what):
        columns = _looked_up(snapshot, config, what)
        _keep(memo, columns)
        return columns
    return {}


def _looked_up(snapshot: hub.Snapshot, config: str, what: str) -> dict[str, bool]:
    held = _builder(snapshot, config)
    if held is None:
        return {}
    features: Mapping[str, Any] = held.info.features or {}
    if features:
        return {name: getattr(feature, "dtype", "") in ("string", "large_string") for name, feature in features.items()}
    files = [str(file) for files in (held.config.data_files or {}).values() for file in files]
    return _of_a_file(snapshot, files[0].partition(f"@{snapshot.commit}/")[2], what) if files else {}


def _of_a_file(snapshot: hub.Snapshot, name: str, what: str) -> dict[str, bool]:
    """The columns of a file of rows, from its beginning (a Parquet file's end): those of Parquet, JSON Lines and CSV."""
    suffix = Path(name).suffix.lower()
    if suffix not in (".parquet", ".jsonl", ".ndjson", ".csv", ".txt"):
        return {}
    if suffix == ".txt":
        return {"text": True}  # what `datasets` calls the lines of a text
    with hub.beginning(snapshot, name, what=what, block=FIRST_BYTES) as file:
        if suffix == ".parquet":
            import pyarrow.parquet

            return {field.name: "string" in str(field.type) for field in pyarrow.parquet.read_schema(file)}
        line = file.read(FIRST_BYTES).partition(b"\n")[0].decode("utf-8-sig", errors="replace")
    if suffix == ".csv":
        return dict.fromkeys(next(csv.reader([line]), []), True)  # of what kind a value is, its rows say
    with contextlib.suppress(ValueError):  # a longer first row, or none: what it holds is known when it is read
        row = json.loads(line)
        return {key: value is None or isinstance(value, str) for key, value in row.items()} if isinstance(row, dict) else {}
    return {}
