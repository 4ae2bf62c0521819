"""The axis `kv` of a suite: what keys and values are kept in while a model answers, as words that its engine knows.

It multiplies cells as bits do, and is a way of running: the weights are made once. Every cell of the axis is compared with its
own weights at an unquantized type, so that an axis names one.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from harness import kv
from harness.errors import BadInput
from harness.methods.base import Method, Option
from harness.spec import Cell, Running
from harness.suite.file import SuiteFile
from harness.suite.mistakes import shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """One value of the axis: the word that `Running.kv` holds, what a label says of it (nothing of the axis' first unquantized
    type, which the cells without a suffix have), and why the engine cannot, or None."""

    word: str
    suffix: str
    reason: str | None = None


def axis(value: object, where: str) -> tuple[str, ...]:
    """The words of a `kv` as a suite writes it, each once. BadInput for one that no engine knows, and for an axis without an
    unquantized type."""
    listed = value if isinstance(value, list) else [value]
    if not listed:
        raise BadInput(f"{where}: kv: [] is an empty list, so there is no cell; write kv: [bf16, int8]")
    found = tuple(dict.fromkeys(_word(each, where) for each in listed))
    if all(kv.quantized(word) for word in found):
        raise BadInput(
            f"{where}: kv: {', '.join(found)}: each cell is compared with its own weights at unquantized keys and values, and "
            f"none of these is; add one of {', '.join(kv.PLAIN)}"
        )
    return found


def said(written: SuiteFile) -> bool:
    """Whether the suite has the axis, for all its methods or for one of them."""
    entries = [each for entry in written.suite.methods.values() for each in (entry if isinstance(entry, list) else [entry or {}])]
    return written.suite.kv is not None or any("kv" in entry for entry in (*entries, *written.suite.include))


def check_baseline(written: SuiteFile, baseline: Cell, cells: Iterable[Cell]) -> None:
    """BadInput where cells of the axis would be held against a baseline that quantizes its keys and values unasked."""
    engine, axis = baseline.running.engine, [cell for cell in cells if cell.running.kv and cell.running.engine in kv.ENGINES]
    unasked = kv.LEFT_ALONE.get(engine) if baseline.running.execution != "accuracy" else None
    if unasked is None or baseline.running.kv or not axis:
        return
    raise BadInput(
        f"{written.where('baseline')}: {baseline.label!r} says nothing of its keys and values, and {engine} keeps them in "
        f"{unasked} then, so nothing could be seen of what other types cost; write kv: [f16, ...] for it too"
    )


def kept(words: Sequence[str], word: str, running: Running, method: Method, *, own: bool, where: str) -> Kept:
    """A word of the axis `words` for a way of running. `own`: the method's own entry says it, so that a word which its engine
    does not know is a mistake; of the suite's axis, such a cell is unsupported."""
    first = next(each for each in words if not kv.quantized(each))
    suffix = "" if word == first else f" kv={word}"
    table = kv.ENGINES.get(running.engine, {})
    lacking = [half for half in dict.fromkeys(kv.halves(word)) if half not in table]
    if not lacking:
        return Kept(word=word, suffix=suffix)
    if running.engine in kv.BY_FLAG:
        reason = (
            f"in {running.engine} the type is a flag, kv_cache: {kv.BY_FLAG[running.engine]}; it is not scored through the cache"
        )
    elif not table:
        reason = f"{running.engine} keeps keys and values as it was started; the harness cannot set a type there"
    else:
        reason = f"{running.engine} cannot keep keys and values in {' and '.join(lacking)}; it takes {', '.join(table)}"
    if own:
        raise BadInput(f"{where}: {method.name}: kv: {reason}")
    return Kept(word=word, suffix=suffix, reason=reason)


def run_in(running: Running, word: str) -> Running:
    return replace(running, kv=word)


def without(running: Running, flags: Mapping[str, Option]) -> Running:
    """The way of running that a label is made of: with what the engine, whose options are `flags`, keeps keys and values in when
    nothing is said."""
    option = flags.get("kv_cache")
    return replace(running, kv="" if option is None else str(option.default))


def _word(value: object, where: str) -> str:
    if isinstance(value, Mapping):
        if set(value) != {"key", "value"}:
            raise BadInput(f"{where}: kv: {shown(value)} names no types; write {{key: int8, value: int4}}")
        return kv.joined(_known(value["key"], where), _known(value["value"], where))
    return _known(value, where)


def _known(value: object, where: str) -> str:
    words = kv.words()
    if isinstance(value, str) and value in words:
        return value
    near = difflib.get_close_matches(str(value).lower(), words, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    raise BadInput(f"{where}: kv: {shown(value)} is no type of keys and values; {hint}known: {', '.join(words)}")
