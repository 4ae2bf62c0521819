"""What happened to a child, sorted into the kinds of failure."""

from __future__ import annotations

import traceback
from collections.abc import Callable

from harness.errors import BadReload, HarnessError, MissingPackage, Nonfinite, ServerTrouble, Unsupported, is_out_of_memory
from harness.spec import Failure, FailureKind, Json, to_json


def guarded(phase: str, work: Callable[[], Json]) -> dict[str, Json]:
    """The work's plain data, or {"failure": ...} with the exception sorted into a kind; the traceback goes to the log."""
    try:
        return dict(work())
    except BaseException as error:  # a child reports whatever happened to it, SystemExit of a library included
        traceback.print_exc()
        failure = Failure(
            kind=failure_kind(error), phase="reload" if isinstance(error, BadReload) else phase, message=_message(error)
        )
        return {"failure": to_json(failure)}


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
    return "error"


def _message(error: BaseException) -> str:
    said = str(error).strip() or "no message"
    return said if isinstance(error, HarnessError) else f"{type(error).__name__}: {said[:2000]}"
