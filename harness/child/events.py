"""What passes between parent and fork server on their pipes, one JSON line each: requests going in, events coming out."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias

from harness.decode import DecodeError, decode


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """Run the job in a folder. It is forked from a branch that has imported `branch_modules` and has done the shared preparation
    in the file `prepare`, where there are any."""

    job: Path
    branch_modules: tuple[str, ...] = ()
    prepare: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """The server has imported its modules: those that are `missing` with the reason, its threads, whether torch sees CUDA."""

    missing: Mapping[str, str]
    threads: int
    cuda: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A process was forked, a branch or a child; it is the one to kill from now on."""

    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A child begins with a question of its job."""

    index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """The outcome of a question, or of a job without questions, is a file."""

    index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseBegun:
    """A child begins with a phase of its work."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a child is: `done` of `total` units. `total` 0: nobody knows, and `said` is the last line that it has written."""

    done: int
    total: int
    unit: str
    said: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exited:
    """The job's child is no more; `code` is its exit code, negative for a signal."""

    code: int


Event: TypeAlias = Ready | Started | Begun | Answered | PhaseBegun | Progress | Exited

_KINDS: dict[str, type[Event]] = {
    "ready": Ready,
    "started": Started,
    "begin": Begun,
    "outcome": Answered,
    "phase": PhaseBegun,
    "progress": Progress,
    "exited": Exited,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}


def event_line(event: Event) -> bytes:
    return json.dumps({"event": _NAMES[type(event)], **asdict(event)}, ensure_ascii=False).encode() + b"\n"


def read_event(line: bytes | str) -> Event:
    """DecodeError for a line that is no event."""
    data = json.loads(line)
    name = data.pop("event", None) if isinstance(data, dict) else None
    if name not in _KINDS:
        raise DecodeError(f"no event of the fork server: {line!r}")
    return decode(_KINDS[name], data)


def request_line(request: JobRequest) -> bytes:
    return json.dumps(asdict(request), ensure_ascii=False, default=os.fspath).encode() + b"\n"


def read_request(line: bytes | str) -> JobRequest:
    return decode(JobRequest, json.loads(line))
