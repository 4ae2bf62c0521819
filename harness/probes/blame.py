"""Whose fault an answer is that is no number: the source's, the baseline's precision, or the artifact's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.errors import BadInput
from harness.formats import gguf_reader, safetensors_file
from harness.formats.safetensors_file import brief

if TYPE_CHECKING:
    from harness.probes.base import Session


def broken(session: Session) -> str:
    """What is broken, in words that end a message. Reads the weights of the source, so it is asked once something is wrong."""
    try:
        own = [] if gguf_reader.is_gguf(session.model_dir) else safetensors_file.nonfinite(session.model_dir)
    except BadInput:  # a source that is no checkpoint of safetensors says nothing here
        own = []
    if own:
        return f"the source is broken: NaN or infinity is stored in {brief(own)}; fetch or save the model again"
    if session.is_baseline:
        return "this is the source in its own precision, whose stored weights are finite: take a wider baseline (fp32)"
    return "the artifact is broken"
