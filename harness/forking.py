"""Processes that fork: threads held back until a fork is over, and children that die with their parent."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import TypeVar

_T = TypeVar("_T")
_PR_SET_PDEATHSIG = 1


@contextlib.contextmanager
def held_back() -> Iterator[list[threading.Thread]]:
    """Threads that Python code starts inside are not started but listed, in order, for `start` in a forked child."""
    held: list[threading.Thread] = []

    def hold(self: threading.Thread) -> None:
        held.append(self)

    with _starting(hold):
        yield held


_START = threading.Thread.start


def let_go() -> contextlib.AbstractContextManager[None]:
    """Inside, threads start again where they are held back: for work that waits for threads of its own and ends them."""
    return _starting(_START)


@contextlib.contextmanager
def _starting(how: Callable[[threading.Thread], None]) -> Iterator[None]:
    before = threading.Thread.start
    threading.Thread.start = how  # type: ignore[method-assign, assignment]  # libraries start threads by this method only
    try:
        yield
    finally:
        threading.Thread.start = before  # type: ignore[method-assign]  # as it was


def start(held: Sequence[threading.Thread]) -> None:
    """Starts what was held back. A fork marks every thread but the forking one as ended, so each is made anew first."""
    for thread in held:
        made: dict[str, object] = {name: getattr(thread, f"_{name}") for name in ("target", "args", "kwargs")}
        threading.Thread.__init__(thread, name=thread.name, daemon=thread.daemon, **made)  # type: ignore[arg-type]  # its own arguments
        thread.start()


def threads() -> int:
    """Threads of this process, of any kind; 1 where the kernel does not say."""
    return len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 1


def processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1


def die_with_parent() -> None:
    """Linux: the kernel kills this process when its parent ends, however it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == 1:  # the parent died before prctl
            os._exit(70)


def beside(work: Callable[[], _T]) -> Callable[[], _T]:
    """Begins `work` in a forked process, and returns what waits for its result. For work that is pure and that starts nothing.

    Where no process can be had (no Linux, no memory) or one ends without a result, the work is done here when it is waited for:
    the result is the same, an error too. A fork copies no other thread than this one, so that work must need none of them."""
    if sys.platform != "linux":
        return work
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_answer, args=(work, there), daemon=True)
    try:
        with warnings.catch_warnings():
            # Python 3.12 warns of a fork beside other threads. Those of numpy's products are made anew by their library.
            warnings.simplefilter("ignore", DeprecationWarning)
            child.start()
    except OSError:
        here.close()
        there.close()
        return work
    there.close()

    def wait() -> _T:
        try:
            answered, result = here.recv()
        except (EOFError, OSError):
            answered, result = False, None
        finally:
            here.close()
        child.join()
        return result if answered else work()

    return wait


def _answer(work: Callable[[], _T], back: Connection) -> None:
    die_with_parent()
    try:
        result = work()
    except Exception:  # it is raised where the result is waited for, by doing the work there
        back.send((False, None))
    else:
        back.send((True, result))
