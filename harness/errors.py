"""The errors that people see, with their exit codes. Errors that never leave a room stand in it.

::

    HarnessError                 exit code 2 unless a subclass says otherwise
    |-- BadInput                 a suite, option, model, task or path the user can mend
    |   |-- UnknownName          a name that is not in a table; carries the nearest names
    |   `-- MissingPackage       an optional package; carries the command that installs it
    |-- StoreError               a results folder that cannot be read or written
    |   |-- NewerSchema          written by a newer quant-harness: refused with advice
    |   `-- OlderSchema          written by an older one, whose files this one does not read: refused with advice
    |-- Unsupported              a cell or probe that this machine or method does not support (typed failure `unsupported`)
    |-- BadReload                an artifact that loads without an error and answers garbage
    |-- BadLedger                an artifact that does not hold the source's weights
    |-- BadAnswers               an artifact whose answers are too far from the baseline's for its bits
    |-- NoEffect                 a setting that the engine takes no notice of
    |-- Nonfinite                a measurement that met NaN or infinity where it cannot go on
    `-- ServerTrouble            a server that cannot be reached or does not answer as it should; carries its failure's kind

A message says what is wrong, where, the likely cause, and the command or edit that fixes it. Anything else that
escapes is our bug: exit code 3 with a traceback.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.spec import FailureKind

EXIT_OK = 0
EXIT_BAD_INPUT = 2
EXIT_BUG = 3


def readable(text: str) -> str:
    """The text without what would steer a terminal. Line ends stay, and so do the thin spaces of our own numbers."""
    return "".join(c if c.isprintable() or c in "\n\u202f" else "\ufffd" for c in text)


class HarnessError(Exception):
    """Base of all deliberate errors; `exit_code` is what the command line returns."""

    exit_code = EXIT_BAD_INPUT


class BadInput(HarnessError):
    """Something the user gave is wrong, and the message says how to mend it."""


_LISTED, _FEW = 40, 8
"""So many names are listed in a message, and of more than these a few: lm-eval has thousands of tasks."""


class UnknownName(BadInput):
    """A name that no table holds; the message offers the nearest ones."""

    def __init__(self, what: str, name: str, known: Iterable[str], where: str = "") -> None:
        names = sorted(known)
        plain = {n.lower(): n for n in names}
        near = [plain[n] for n in difflib.get_close_matches(name.lower(), plain, n=3, cutoff=0.5)]
        place = f"{where}: " if where else ""
        listed = ", ".join(names) if len(names) <= _LISTED else f"{', '.join(names[:_FEW])} and {len(names) - _FEW} more"
        hint = f"did you mean {' or '.join(repr(n) for n in near)}?" if near else f"known: {listed}"
        super().__init__(f"{place}unknown {what} {name!r}; {hint}")
        self.name = name
        self.nearest = tuple(near)


class MissingPackage(BadInput):
    """An optional package is not installed; `install` is the command that adds it."""

    def __init__(self, package: str, needed_for: str, install: str) -> None:
        super().__init__(f"{needed_for} needs the package {package!r}, which is not installed here; add it with: {install}")
        self.package = package
        self.install = install


class StoreError(HarnessError):
    """A results folder or run file that cannot be read or written."""


class NewerSchema(StoreError):
    """A file written by a newer version of the harness."""


class OlderSchema(StoreError):
    """A file written by an older version of the harness, in a schema that this one does not read."""


class DamagedBlob(StoreError):
    """Raw samples whose bytes are not those that were stored."""


class Unsupported(HarnessError):
    """This cell or probe cannot be measured here, for a reason that is no bug; becomes a typed failure."""


class BadReload(HarnessError):
    """An artifact that loads without an error and answers garbage; becomes a typed failure of the whole cell."""


class BadLedger(HarnessError):
    """An artifact that does not hold every weight of the source exactly once; becomes a typed failure of the whole cell."""


class BadAnswers(HarnessError):
    """Answers that are farther from the baseline's than so many bits can bring them; becomes a typed failure of the
    whole cell."""


class NoEffect(HarnessError):
    """A way of running whose answers are, bit for bit, those without its setting; becomes a typed failure."""


class Nonfinite(HarnessError):
    """The artifact answers NaN or infinity where a number was needed; becomes a typed failure."""


class ServerTrouble(HarnessError):
    """A server that somebody else runs cannot be reached, refuses, or answers nonsense; becomes a typed failure of `kind`."""

    def __init__(self, message: str, kind: FailureKind) -> None:
        super().__init__(message)
        self.kind: FailureKind = kind


_OUT_OF_MEMORY = (
    "OutOfMemoryError",  # the name of torch's own type
    "can't allocate memory",  # torch on a host
    "CUDA out of memory",
    "Cannot allocate memory",  # the C library (ENOMEM)
    "std::bad_alloc",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out here. It has no common type: torch, numpy and C++ each say it their way. What a server says of its
    own memory is not meant."""
    if isinstance(error, ServerTrouble):
        return False
    said = f"{type(error).__name__}: {error}"
    return isinstance(error, MemoryError) or any(sign in said for sign in _OUT_OF_MEMORY)


@contextlib.contextmanager
def explained(place: Path) -> Iterator[None]:
    """Turns the operating system's refusal into a message that says what to do."""
    try:
        yield
    except PermissionError as error:
        raise StoreError(f"{place}: cannot be written ({error.strerror}); choose another folder with --results DIR") from None
    except NotADirectoryError:
        raise StoreError(f"{place}: a file stands where a folder is needed; choose another with --results DIR") from None
    except FileExistsError:
        raise StoreError(f"{place}: a file stands where a folder is needed; choose another with --results DIR") from None
    except OSError as error:
        if error.errno == 28:  # ENOSPC
            raise StoreError(
                f"{place}: no space left on the disk; free some (quant-harness env remove, or delete old artifacts in the cache "
                "folder), then run the same command again: everything already measured is kept"
            ) from None
        raise StoreError(f"{place}: cannot be written ({error.strerror})") from None
