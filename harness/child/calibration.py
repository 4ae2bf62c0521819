"""The rows that a cell is calibrated on, and how much of them is scored as well."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, cast

from harness.artifact import MANIFEST, Manifest
from harness.child.job import CalibrationRows, Job
from harness.decode import decode
from harness.models import corpora, overlap

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def rows(job: Job, wish: CalibrationRows) -> list[list[int]]:
    """The rows as token ids of the model's tokenizer. BadInput for a text that is shorter than they are."""
    return _drawn(_tokenizer(job.model_dir), job, wish)


def overlap_with(job: Job, scored: str) -> float | None:
    """The share of the rows' characters that a scored text holds too, see models/overlap.py; None where the text that the
    artifact was calibrated on is not here any more, or another one is in its place."""
    wish = job.calibration
    assert wish is not None
    if not wish.path.exists() or corpora.digest(wish.path) != _manifest(job.artifact_dir).calibration_digest:
        return None
    tokenizer = _tokenizer(job.model_dir)
    words = [str(tokenizer.decode(row, skip_special_tokens=True)) for row in _drawn(tokenizer, job, wish)]
    return overlap.share("\n".join(words), scored)


def _drawn(tokenizer: PreTrainedTokenizerBase, job: Job, wish: CalibrationRows) -> list[list[int]]:
    ids = corpora.token_ids(tokenizer, corpora.text(wish.path), job.cache / "tokens")
    return corpora.calibration_rows(ids, samples=wish.samples, length=wish.length, seed=wish.seed, name=wish.corpus)


def _tokenizer(model_dir: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    return cast("PreTrainedTokenizerBase", AutoTokenizer.from_pretrained(str(model_dir), trust_remote_code=False))


def _manifest(artifact: Path) -> Manifest:
    return decode(Manifest, json.loads((artifact / MANIFEST).read_text(encoding="utf-8")))
