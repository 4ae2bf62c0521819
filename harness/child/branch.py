"""A branch is a process that has imported a slow library. The jobs that need this library fork from the branch.

Importing GPTQModel costs 0.4 s of CPU time and more, in each of a cell's four children. The fork server cannot import it for
them: the import starts threads, which a fork does not carry along, and changes transformers, which other methods must not see. So
the server forks a branch when the first job asks for one. The branch imports the library, and children are forked from it.

A thread that Python code starts during the import is held back: the branch stays a process of one thread, and each child
starts the threads itself before its job begins. The fork loses nothing, because nothing has run. Some imports bring threads of
another kind (CUDA's, say), wait for a thread that is held back, or end the process. Then there is no branch: children are forked
from the server and import for themselves, and the server's log says so. A branch may prepare more than imports, such as the
requests of a suite's tasks. Where that hangs or crashes, it costs time and nothing else.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping

from harness.forking import die_with_parent, held_back, start, threads

Jobs = Callable[[Iterable[str], Callable[[], None], Callable[[], None]], None]
"""(lines, begin, done): forks a child for each job that a line names, which calls `begin` first; calls `done` after each."""

IMPORT_SECONDS = 120.0
"""An import that takes longer waits for a thread that is held back."""


class Branch:
    """The fork server's side of a branch. `usable` is False where no children can be forked from it."""

    def __init__(self, prepare: Mapping[str, Callable[[], object]], jobs: Jobs, born: Callable[[int], None]) -> None:
        """Forks the branch, and returns once it has prepared what its children share: each entry of `prepare`, whose name the log
        gives. `born` gets the process id before that, because it may take long."""
        self._socket, theirs = socket.socketpair()
        self._code: int | None = None
        self._pid = os.fork()
        if self._pid == 0:
            self._socket.close()
            _serve(prepare, jobs, theirs)
        theirs.close()
        born(self._pid)
        self._socket.settimeout(IMPORT_SECONDS)
        try:
            self.usable = self._socket.recv(1) == b"+"  # nothing: it died
        except (TimeoutError, ConnectionError):
            self.usable = False
            os.kill(self._pid, signal.SIGKILL)
        self._socket.settimeout(None)
        if not self.usable:
            names = ", ".join(prepare)
            sys.stderr.write(f"{names}: no branch (exit code {self.close()}), so every child does that for itself\n")

    def run(self, line: str) -> bool:
        """Has the branch run the job of a line; False where the branch has ended, and any child of it with it."""
        try:
            self._socket.sendall(line.encode())
            return self._socket.recv(1) == b"."
        except OSError:
            return False

    def close(self) -> int:
        """Ends the branch; returns its exit code (negative = signal)."""
        self._socket.close()
        if self._code is None:
            self._code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        return self._code


def _serve(prepare: Mapping[str, Callable[[], object]], jobs: Jobs, server: socket.socket) -> None:
    code = 70
    try:
        die_with_parent()
        sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)  # as a child's is, because libraries look at it
        with held_back() as held:
            for do in prepare.values():
                try:
                    do()
                except Exception:  # what needs it will fail, and its record says so
                    traceback.print_exc()
        gc.collect()
        gc.freeze()

        def begin() -> None:
            os.close(server.fileno())
            start(held)

        usable = threads() == 1
        server.sendall(b"+" if usable else b"-")
        if usable:
            jobs(server.makefile("r", encoding="utf-8"), begin, lambda: server.sendall(b"."))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
