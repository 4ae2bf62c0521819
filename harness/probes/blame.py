"""Whose fault an answer is that is no number: that of the source, the baseline's precision, a given checkpoint, the range of a
dtype, or the method."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import HarnessError
from harness.formats import gguf_reader, gguf_weights, safetensors_file
from harness.formats.safetensors_file import brief
from harness.methods import METHODS

if TYPE_CHECKING:
    from harness.probes.base import Session

_AGAIN = "fetch or save the model again"


def broken(session: Session) -> str:
    """What is broken, in words that end a message. Reads the weights of the source, and of the artifact where that says more, so
    it is asked once something is wrong."""
    cell, own = session.cell, _nonfinite(session.model_dir)
    if own:
        return f"the source is broken: NaN or infinity is stored in {brief(own)}; {_AGAIN}"
    unquantized = METHODS[cell.method].unquantized
    held = None if unquantized else _nonfinite(session.artifact_dir)
    if cell.origin.kind == "given":
        return _of_a_given_one(held)
    if session.is_baseline:
        return "this is the source in its own precision, whose stored weights are finite: take a wider baseline (fp32)"
    sound = "; the source's stored weights are finite" if own is not None else ""
    if unquantized:
        return f"numbers of this model are beyond the range of {cell.method}: take fp32{sound}"
    wrote = f"{cell.method} wrote NaN or infinity into {brief(held)}" if held else f"it is {cell.method}'s, or its kernel's"
    return f"the artifact is broken: {wrote}{sound}"


def _of_a_given_one(held: list[str] | None) -> str:
    if held:
        return f"the given checkpoint is broken: NaN or infinity is stored in {brief(held)}; {_AGAIN}"
    sound = ", whose stored numbers are finite" if held is not None else ""
    return f"the given checkpoint is broken{sound}, or what computes with it; {_AGAIN}"


def _nonfinite(place: Path) -> list[str] | None:
    """The tensors of a checkpoint or an artifact that are not finite; None where they cannot be read here: files of another kind,
    or a package that is not installed."""
    files = [place] if gguf_reader.is_gguf(place) else sorted(place.glob("*.gguf"))
    with contextlib.suppress(HarnessError, ImportError):
        return gguf_weights.nonfinite(files[0]) if files else safetensors_file.nonfinite(place)
    return None
