"""What a gate lets pass: how often it may cry wolf, how large a change matters, and what is muted until when.

A policy is a YAML file; what it does not say stands as in suites/policy.yaml, which holds all defaults and says what each means.
"""

from __future__ import annotations

import datetime
import difflib
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import yaml

from harness.errors import BadInput
from harness.gate.types import Kind, Square
from harness.metrics import METRICS

MEAN_ACCURACY = "mean_accuracy"
"""The name under which a policy speaks of a cell's tasks together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """When a change of a metric is news. Both must hold beside significance.

    `magnitude`: the change itself is at least this. `margin`: the whole 95 % interval of the change lies beyond this. In points
    for accuracy, in nats for perplexity (of its logarithm: 0.002 is 0.2 %), as a share for all others (0.05 is 5 %).
    `short_history`: for latency and memory, the share that stands in for the fence while a series is short.
    """

    magnitude: float = 0.0
    margin: float = 0.0
    short_history: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Mute:
    """Alarms that are not counted up to and with the day `until` of the candidate: of a cell ("MODEL / LABEL"; '' for all) and a
    metric ('' for all), with the reason."""

    cell: str
    metric: str
    until: datetime.date
    why: str

    def covers(self, square: Square, started_at: str) -> bool:
        hit = self.cell in ("", square.cell, square.label) and self.metric in ("", square.metric)
        return hit and started_at[:10] <= self.until.isoformat()

    @property
    def words(self) -> str:
        return f"muted until {self.until.isoformat()}: {self.why}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """`alpha`: the share of nights in which nothing changed and an alarm may be raised all the same. `busy`:
    the share of a machine's CPU time that may go elsewhere while a latency is measured. `limits` by metric; those of
    other metrics are the defaults of their kind. `source`: the file, '' for the defaults."""

    alpha: float = 0.01
    busy: float = 0.25
    limits: Mapping[str, Limit] = field(default_factory=dict)
    mutes: tuple[Mute, ...] = ()
    source: str = ""

    def limit(self, metric: str, kind: Kind) -> Limit:
        return self.limits.get(metric) or DEFAULTS.get(metric) or _OF_KIND[kind]

    def whence(self, metric: str) -> str:
        return f"the policy {self.source}" if metric in self.limits else "the default policy"

    def idle_mutes(self, squares: Collection[Square], started_at: str) -> Iterator[str]:
        """A sentence for each mute that mutes nothing: it has ended, or no square is called so."""
        for mute in self.mutes:
            what = " and ".join(
                part for part in (mute.cell and f"cell {mute.cell!r}", mute.metric and f"metric {mute.metric!r}") if part
            )
            if started_at[:10] > mute.until.isoformat():
                yield f"the mute of {what} in {self.source} ended on {mute.until.isoformat()}"
            elif not any(mute.covers(square, started_at) for square in squares):
                yield f"the mute of {what} in {self.source} covers no square; a cell is called MODEL / LABEL"

    def muted(self, square: Square, started_at: str) -> str:
        return next((m.words for m in self.mutes if m.covers(square, started_at)), "")


DEFAULTS: Mapping[str, Limit] = {
    MEAN_ACCURACY: Limit(magnitude=0.25),
    "accuracy": Limit(magnitude=1.0),
    "perplexity": Limit(magnitude=0.002),
    "kl_mean": Limit(magnitude=0.05),
    "tpot": Limit(magnitude=0.03, short_history=1.0),
    "ttft": Limit(magnitude=0.03, short_history=1.0),
}

_OF_KIND: Mapping[Kind, Limit] = {
    "items": Limit(magnitude=1.0),
    "losses": Limit(magnitude=0.002),
    "tokens": Limit(magnitude=0.05),
    "exact": Limit(),
    "fenced": Limit(magnitude=0.02, short_history=0.10),
}

_KEYS = ("alpha", "busy", "limits", "mute")
_LIMIT_KEYS = ("magnitude", "margin", "short_history")
_MUTE_KEYS = ("cell", "metric", "until", "why")


def load(path: Path) -> Policy:
    """Reads a policy. BadInput says file, place and what belongs there."""
    try:
        raw = path.read_text(encoding="utf-8")
        data = yaml.safe_load(raw)
        again = _twice(yaml.compose(raw, Loader=yaml.SafeLoader))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise BadInput(f"{path}{line}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    except ValueError as error:
        if isinstance(error, UnicodeDecodeError):
            raise BadInput(f"{path}: is no UTF-8 text ({error}); a policy is a YAML file like suites/policy.yaml") from None
        raise BadInput(f"{path}: a date is none ({error}); a day is written like 2027-01-31") from None
    except RecursionError:
        raise BadInput(
            f"{path}: refers to itself, or is nested too deep; a policy is a YAML file like suites/policy.yaml"
        ) from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error}); a policy is a YAML file like suites/policy.yaml") from None
    if again is not None:
        raise BadInput(f"{path}, line {again.start_mark.line + 1}: {again.value!r} is written twice; keep one")
    known = _mapping(path, "the policy", {} if data is None else data, _KEYS)
    policy = Policy(source=path.name)
    if "alpha" in known:
        alpha = _number(path, "alpha", known["alpha"])
        if not 0 < alpha <= 0.5:
            raise BadInput(f"{path}, alpha: the share of nights with a false alarm is above 0 and at most 0.5, not {alpha:g}")
        policy = replace(policy, alpha=alpha)
    if "busy" in known:
        busy = _number(path, "busy", known["busy"])
        if not 0 <= busy <= 1:
            raise BadInput(f"{path}, busy: a share of the machine's CPU time is 0 to 1, not {busy:g}")
        policy = replace(policy, busy=busy)
    limits = _mapping(path, "limits", known.get("limits") or {}, (MEAN_ACCURACY, *METRICS))
    return replace(
        policy,
        limits={name: _limit(path, name, wanted) for name, wanted in limits.items()},
        mutes=tuple(_mute(path, number, entry) for number, entry in enumerate(_list(path, "mute", known.get("mute")), start=1)),
    )


def _twice(node: yaml.Node | None) -> yaml.Node | None:
    """The second of two equal keys of one mapping, wherever it stands; YAML keeps the last without a word."""
    if isinstance(node, yaml.SequenceNode):
        return next((found for item in node.value if (found := _twice(item)) is not None), None)
    if not isinstance(node, yaml.MappingNode):
        return None
    seen = set()
    for key, value in node.value:
        if key.value in seen:
            return cast(yaml.Node, key)
        seen.add(key.value)
        if (found := _twice(value)) is not None:
            return found
    return None


def _limit(path: Path, name: str, wanted: object) -> Limit:
    default = DEFAULTS.get(name) or Limit()
    given = _mapping(path, f"limits.{name}", wanted, _LIMIT_KEYS)
    numbers = {key: _number(path, f"limits.{name}.{key}", value) for key, value in given.items()}
    if below := next((key for key, value in numbers.items() if value < 0), None):
        raise BadInput(f"{path}, limits.{name}.{below}: a change that matters is 0 or more, not {numbers[below]:g}")
    return replace(default, **numbers)


def _mute(path: Path, number: int, entry: object) -> Mute:
    where = f"mute, entry {number}"
    given = _mapping(path, where, entry, _MUTE_KEYS)
    until, why = given.get("until"), given.get("why")
    if not isinstance(until, datetime.date) or isinstance(until, datetime.datetime):
        raise BadInput(f"{path}, {where}: `until` is the last day of it, such as until: 2027-01-31; nothing is muted for ever")
    if not isinstance(why, str) or not why.strip():
        raise BadInput(f"{path}, {where}: `why` says in words why it is muted")
    names = {key: given.get(key, "") for key in ("cell", "metric")}
    if wrong := next((key for key, value in names.items() if not isinstance(value, str)), None):
        raise BadInput(f"{path}, {where}: `{wrong}` is a text")
    if not any(names.values()):
        raise BadInput(f"{path}, {where}: name a cell (MODEL / LABEL), a metric, or both; without either the gate would be off")
    return Mute(cell=str(names["cell"]), metric=str(names["metric"]), until=until, why=why.strip())


def _mapping(path: Path, where: str, value: object, keys: Collection[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadInput(f"{path}, {where}: a mapping is expected here, not {value!r}")
    for key in value:
        if key not in keys:
            near = difflib.get_close_matches(str(key), keys, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(keys)[:12])}"
            raise BadInput(f"{path}, {where}: unknown key {key!r}; {hint}")
    return value


def _list(path: Path, where: str, value: object) -> list[object]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise BadInput(f"{path}, {where}: a list is expected here, not {value!r}")
    return value


def _number(path: Path, where: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise BadInput(f"{path}, {where}: a number is expected here, not {value!r}")
    return float(value)
