"""What went wrong in a child, sorted into the kinds of failure: by the exception inside it, or by the way it ended."""

from __future__ import annotations

import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from harness.child.job import Outcome
from harness.errors import (
    BadAnswers,
    BadInput,
    BadLedger,
    BadReload,
    HarnessError,
    MissingPackage,
    NoEffect,
    Nonfinite,
    ServerTrouble,
    Unsupported,
    is_out_of_memory,
)
from harness.files import tail
from harness.spec import Answer, Failure, FailureKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How a child ended: exit code (negative = signal), and whether the parent killed it for overstaying."""

    code: int
    timed_out: bool = False


_PHASES: dict[type[HarnessError], str] = {BadReload: "reload", BadLedger: "ledger", BadAnswers: "answers", NoEffect: "kv"}
"""Errors that name the phase that they belong to, whatever was being done."""


def guarded(phase: str, work: Callable[[], Answer | None]) -> Outcome:
    """The outcome of some work: what it answers, or the exception sorted into a kind; the traceback goes to the log."""
    try:
        return Outcome(answer=work())
    except BaseException as error:  # a child reports whatever happened to it, SystemExit of a library included
        traceback.print_exc()
        phase = next((name for kind, name in _PHASES.items() if isinstance(error, kind)), phase)
        return Outcome(failure=Failure(kind=failure_kind(error), phase=phase, message=_message(error)))


def failure_kind(error: BaseException) -> FailureKind:
    """Sorts an exception into a failure kind."""
    if isinstance(error, ServerTrouble):
        return error.kind
    if is_out_of_memory(error):
        return "oom"
    if isinstance(error, Unsupported):
        return "unsupported"
    if isinstance(error, Nonfinite):
        return "nonfinite"
    if isinstance(error, (MissingPackage, ImportError)):
        return "environment"
    if isinstance(error, BadInput):
        return "input"
    return "error"


def failure_of(outcome: Outcome | None, ended: Exit | Failure, *, log: Path, phase: str, timeout: float) -> Failure | None:
    """The failure that a child's outcome holds, or that the way it ended without one stands for; None when all went well. The end
    of its `log` goes into it; `timeout` is what the child had, in seconds."""
    if isinstance(ended, Failure):
        return ended
    end = tail(log)
    if outcome is not None:
        return None if outcome.failure is None else replace(outcome.failure, log_tail=end)
    if ended.timed_out:
        message = f"stopped after {timeout:g} s; raise `timeout` in the suite if it needs more"
        return Failure(kind="timeout", phase=phase, message=message, log_tail=end)
    if ended.code == -signal.SIGKILL:
        message = (
            "killed by signal 9, which the harness did not send: almost always the kernel's out-of-memory killer; "
            "use a smaller model or batch, or a machine with more memory"
        )
        return Failure(kind="oom", phase=phase, message=message, log_tail=end)
    if ended.code < 0:
        message = f"the child died of {signal.Signals(-ended.code).name}; the log's end may say where"
        return Failure(kind="crash", phase=phase, message=message, log_tail=end)
    return Failure(kind="crash", phase=phase, message=f"the child left with exit code {ended.code} and no outcome", log_tail=end)


def _message(error: BaseException) -> str:
    said = str(error).strip() or "no message"
    return said if isinstance(error, HarnessError) else f"{type(error).__name__}: {said[:2000]}"
