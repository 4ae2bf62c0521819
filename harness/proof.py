"""Lines that prove themselves: each line of a run file ends with a checksum of itself and of the proof before it.

A line is one JSON object whose last member is ``"proof"``: the first 32 hex digits of SHA-256 over the proof of the line before
(nothing for the first line) and the line's own bytes up to that member. So a line that was altered, doubled or moved, or follows
one that was dropped, does not fit where it stands. It is a checksum against accidents, not a signature: who rewrites a file can
prove it anew.

A line fits if it follows from the proof that the line before *states* or from the one that it *should* state, so that one
damaged line, or one damaged proof, costs one line. Standard library only.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_TAIL = re.compile(rb',"proof":"([0-9a-f]{32})"\}\n\Z')
_TAIL_BYTES = len(b',"proof":""}\n') + 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """A place where a file is not as it was written. `line` counts from 1; None: the file as a whole. `what`: the kind of line
    that it says to be, if it still says."""

    line: int | None
    what: str
    why: str

    def __str__(self) -> str:
        return self.why if self.line is None else f"line {self.line}: {self.why}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seal:
    """What a finished file was: its size in bytes and the proof of its last line."""

    size: int
    proof: str


def seal_path(path: Path) -> Path:
    """Where the seal of a finished file lies."""
    return path.with_name(path.name + ".seal")


def read_seal(path: Path) -> Seal | Damage | None:
    """The seal of a file; None where it was never finished."""
    place = seal_path(path)
    try:
        found = json.loads(place.read_bytes())
        seal = Seal(size=int(found["size"]), proof=str(found["proof"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return Damage(line=None, what="end", why=f"its seal, {place.name}, cannot be read")
    return seal


def last_line(path: Path) -> bytes | Damage | None:
    """The JSON object of a finished file's last line, read from its tail: it must be what the seal says, where the seal says it,
    and follow from the proof that the line before it states. None where the file was never finished."""
    seal = read_seal(path)
    if seal is None or isinstance(seal, Damage):
        return seal
    size = path.stat().st_size
    if size != seal.size:
        why = f"it ends otherwise than when it was finished ({size:,} bytes now, {seal.size:,} then)"
        return Damage(line=None, what="end", why=why)
    before, last = _last_two(path, size)
    content = Chain(stated=before, due=before).admit(last)
    if content is None or stated_proof(last) != seal.proof:
        return Damage(line=None, what="end", why="its last line is not as it was written when it was finished")
    return content


def _last_two(path: Path, size: int) -> tuple[str, bytes]:
    """The proof that the last line but one states ('' where there is none), and the last line."""
    with path.open("rb") as file:
        step = 1 << 16
        while True:
            start = max(0, size - step)
            file.seek(start)
            tail = file.read(size - start)
            cut = tail.rfind(b"\n", 0, max(0, len(tail) - 1)) + 1
            if cut > _TAIL_BYTES or start == 0:
                return stated_proof(tail[:cut]) or "", tail[cut:]
            step *= 4


@dataclass(slots=True)
class Chain:
    """Where the next line must fit: the proof that the last line stated, and the one that it should have stated."""

    stated: str = ""
    due: str = ""

    def admit(self, line: bytes) -> bytes | None:
        """The line without its proof, a JSON object; None where it does not fit. Either way the next line may follow it."""
        stated, content = stated_proof(line), line[:-_TAIL_BYTES]
        due = _proof(content, self.stated)
        if stated is not None and stated != due and stated == _proof(content, self.due):
            due = stated  # it follows from the line before, whose own proof is what was damaged
        self.stated, self.due = (
            stated or self.stated,
            due,
        )  # a line without a proof is a stranger: the next may follow the one before
        return content + b"}" if stated == due else None


def sealed(content: bytes, before: str) -> bytes:
    """A line of a file, its end included, from a JSON object that is not empty and the proof of the line before."""
    if not content.endswith(b"}") or len(content) < 4 or b"\n" in content:
        raise ValueError("only one line that is a JSON object can be sealed")
    return content[:-1] + f',"proof":"{_proof(content[:-1], before)}"}}\n'.encode()


def chained(contents: Iterable[bytes]) -> Iterator[bytes]:
    """The lines of a file of its own, from JSON objects."""
    before = ""
    for content in contents:
        line = sealed(content, before)
        before = stated_proof(line) or ""
        yield line


def unsealed(line: bytes) -> bytes:
    """The JSON object of a line that is whole, without its proof."""
    return line[:-_TAIL_BYTES] + b"}"


def stated_proof(line: bytes) -> str | None:
    """The proof at the end of a line; None where none stands."""
    found = _TAIL.search(line, max(0, len(line) - _TAIL_BYTES))
    return None if found is None else found[1].decode()


def _proof(content: bytes, before: str) -> str:
    return hashlib.sha256(before.encode() + content).hexdigest()[:32]
