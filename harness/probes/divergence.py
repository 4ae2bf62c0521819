"""Divergence of a cell from the baseline: how far its next-token distributions are from the unquantized model's.

At every scored position of a corpus' windows, over the full vocabulary, in nats, from float32 log-softmax of both: KL(baseline ||
cell), same-top (equal argmax), delta-p (probability of the true token, cell minus baseline), and ln(PPL / PPL of the baseline)
with its paired interval. The baseline's answers are stored once as final hidden states (see `engines/stored_baseline.py`);
compared with itself, a model has a divergence of exactly 0.

Through the cache (`cached-W+R`), a cell that quantizes its keys and values is compared with its own weights at unquantized ones
as well: `kv_kl_mean`, `kv_same_top` and `kv_ln_ppl_ratio` are what the type of keys and values costs by itself.

On the baseline's own cell `kl_floor` is measured too: the same weights under another legitimate execution. A cell below it is
indistinguishable from the baseline. On all others the tokens with the largest divergence are kept with their text.

Version 1 (2026-11-21): first definition.
Version 2 (2026-11-25): the same sum in a form that no rounding takes below zero; values move by about 1e-7 nats.
Version 3 (2026-11-28): a mean that lacks tokens at which the baseline answers is refused.
(2026-11-30: `cached-W+R` was added, and changes no number of one pass.)
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from harness.engines.base import BASELINE_FACTS, Rerun
from harness.errors import Nonfinite
from harness.kv import split_of
from harness.metrics.divergence import BUCKETS, DELTA_QUANTILES, GROUP, METRICS, QUANTILES, bucket
from harness.probes.base import Probe, Session
from harness.probes.blame import broken
from harness.probes.perplexity import OWN, corpus_options, corpus_pass, npy, same_tokens
from harness.probes.requests import ProbeRequests
from harness.spec import Answer, Measurement, Question

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

    from harness.stats import Interval

Floats: TypeAlias = "NDArray[np.floating]"
"""One number per scored token: [windows, tokens]."""


STORED = (
    "kind",
    "dtype",
    "hidden_size",
    "vocab_size",
    "states_bytes",
    "head_bytes",
    "float16_logit_bytes",
    "times_smaller_than_logits",
)
"""What the record says of the baseline's stored answers: both sizes, so that nobody has to believe the ratio."""

WORST, CONTEXT = 20, 32
"""How many of the tokens with the largest divergence are kept with their text, and how many tokens before each."""

FLOOR_TOKENS = 16384
"""At most so many tokens are run again for the noise floor."""


_SHARES = ("same_top", "kv_same_top")

_UNITS = {metric.name: metric.unit for metric in METRICS}
_DEFINITIONS = {metric.name: metric.definition for metric in METRICS}


def questions(requests: ProbeRequests) -> list[Question]:
    """One question per corpus of the suite, on the same windows as perplexity."""
    return [Question(probe="divergence", subject=corpus.name, options=corpus_options(corpus)) for corpus in requests.corpora]


def measure(session: Session, question: Question) -> Answer:
    """All divergence statistics on the question's corpus. Raises Unsupported where there is no comparable baseline."""
    import numpy as np

    scores = corpus_pass(session, question, compare=True)
    kl, top, delta = scores["kl"], scores["same_top"], scores["delta_p"]
    kl = same_tokens(session, question, kl, scores["base_nll"])
    finite = np.isfinite(kl)
    bad = int(finite.size - finite.sum())
    if bad == finite.size:
        raise Nonfinite(f"{session.cell.name}: no token of {question.subject!r} has a finite divergence; {broken(session)}")
    window, split = int(question.options["window"]), split_of(str(question.options["definition"]))
    facts: dict[str, object] = {"windows": int(kl.shape[0]), "window": window, "tokens": int(kl.size)}
    if bad:
        facts["marked"] = "nonfinite"
        facts["nonfinite_tokens"] = bad
    blobs = {name: session.blob(name, npy(scores[name]), "npy") for name in ("kl", "same_top", "delta_p", "base_top")}
    if not session.is_baseline:
        rows = [row[0 if split is None else split.warm_up :] for row in session.windows(question)]
        worst = worst_tokens(kl, scores, rows, session.loaded.tokenizer)
        blobs["worst"] = session.blob("worst", worst, "json")
    suffix = f", gptq-{window} windows" if split is None else f", {split.name}, windows of {window}"
    measurements = [
        *_kl(kl, scores["base_top"], blobs, suffix, facts),
        *_agreement(np.where(finite, top, np.nan), np.where(finite, delta, np.nan), blobs, suffix),
        *_ratio(scores["nll"], scores["base_nll"], suffix),
    ]
    measurements.extend(_own(scores, session, suffix))
    kept = session.stored_baseline(question) / BASELINE_FACTS
    if kept.is_file():
        stored = json.loads(kept.read_text(encoding="utf-8"))
        facts["stored_baseline"] = {name: stored.get(name) for name in STORED}
    if session.is_baseline and split is None:
        measurements.extend(_floor(session, question, suffix, facts))
    return Answer(measurements=tuple(measurements), facts=facts)


PROBE = Probe(
    name="divergence",
    title=GROUP.title,
    version="3",
    metrics=GROUP.metrics,
    isolation="shared",
    questions=questions,
    measure=measure,
    preload=("harness.engines.transformers", "harness.stats"),
    needs_stored_baseline=True,
    needs_weights=True,
)


def _kl(kl: Floats, base_top: Floats, blobs: Mapping[str, str], suffix: str, facts: dict[str, object]) -> list[Measurement]:
    """Mean, percentiles, maximum, and means by bucket of the baseline's confidence of KL [windows, tokens]."""
    import numpy as np

    from harness import stats

    rows = [_interval("kl_mean", stats.block_bootstrap_mean(kl), suffix, blobs["kl"])]
    rows += [_interval(f"kl_{name}", stats.quantile_interval(kl, level), suffix, None) for name, level in QUANTILES]
    finite = kl[np.isfinite(kl)]
    most = stats.Interval(value=float(finite.max()), low=None, high=None, n=int(finite.size))
    rows.append(_interval("kl_max", most, suffix, blobs.get("worst")))
    counts: dict[str, int] = {}
    for low, high in BUCKETS:
        inside = (base_top >= low) & ((base_top < high) if high < 1.0 else (base_top <= 1.0))
        inside &= np.isfinite(kl)
        name = bucket(low, high)
        counts[name] = int(inside.sum())
        if not inside.any():
            continue
        by_window = np.where(inside, kl, 0.0).astype(np.float64).sum(axis=1)
        rows.append(
            _interval(name, stats.ratio_of_sums(by_window, inside.sum(axis=1), n=counts[name]), suffix, blobs["base_top"])
        )
    facts["tokens_by_confidence"] = counts
    return rows


def worst_tokens(
    kl: Floats, scores: Mapping[str, Floats], windows: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase
) -> bytes:
    """The tokens at which a cell's answer is furthest from the baseline's, with what stands before them, as JSON.

    `kl` [windows, T-1]: its entry t is about token t + 1 of its window. Largest first; of equal ones the first in the text.
    """
    import numpy as np

    flat = np.where(np.isfinite(kl), kl, -np.inf).ravel()
    tokens = []
    for place in np.argsort(-flat, kind="stable")[:WORST]:
        if flat[place] <= 0:
            break
        row, column = divmod(int(place), kl.shape[1])
        ids = [int(one) for one in windows[row]]
        tokens.append(
            {
                "window": row,
                "position": column + 1,
                "before": tokenizer.decode(ids[max(0, column + 1 - CONTEXT) : column + 1]),
                "token": tokenizer.decode([ids[column + 1]]),
                "after": tokenizer.decode(ids[column + 2 : column + 2 + CONTEXT // 4]),
                "kl": float(flat[place]),
                "base_top": float(scores["base_top"][row, column]),
                "same_guess": bool(scores["same_top"][row, column]),
                "p_base": math.exp(-float(scores["base_nll"][row, column])),
                "p": math.exp(-float(scores["nll"][row, column])),
            }
        )
    return json.dumps({"tokens": tokens}, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")


def _agreement(top: Floats, delta: Floats, blobs: Mapping[str, str], suffix: str) -> list[Measurement]:
    """same-top and delta-p of [windows, tokens], NaN where the cell's answer is not finite."""
    import numpy as np

    from harness import stats

    rows = [
        _interval("same_top", stats.share_interval(top), suffix, blobs["same_top"]),
        _interval("delta_p_mean", stats.block_bootstrap_mean(delta), suffix, blobs["delta_p"]),
        _interval(
            "delta_p_rms",
            stats.block_bootstrap_mean(np.square(delta.astype(np.float64))).map(lambda x: math.sqrt(max(x, 0.0))),
            suffix,
            None,
        ),
    ]
    rows += [_interval(f"delta_p_{name}", stats.quantile_interval(delta, level), suffix, None) for name, level in DELTA_QUANTILES]
    return rows


def _ratio(nll: Floats, base_nll: Floats, suffix: str) -> list[Measurement]:
    from harness import stats

    return [_interval("ln_ppl_ratio", stats.ln_ppl_ratio(nll, base_nll), suffix, None)]


def _own(scores: Mapping[str, Floats], session: Session, suffix: str) -> list[Measurement]:
    """The cell against its own weights at unquantized keys and values; nothing where its own are."""
    from harness import stats

    if OWN + "kl" not in scores:
        return []
    kl = scores[OWN + "kl"]
    return [
        _interval("kv_kl_mean", stats.block_bootstrap_mean(kl), suffix, session.blob("kv_kl", npy(kl), "npy")),
        _interval("kv_same_top", stats.share_interval(scores[OWN + "same_top"].astype(float)), suffix, None),
        _interval("kv_ln_ppl_ratio", stats.ln_ppl_ratio(scores[OWN + "nll"], scores[OWN + "base_nll"]), suffix, None),
    ]


def _floor(session: Session, question: Question, suffix: str, facts: dict[str, object]) -> list[Measurement]:
    """The baseline against itself under another legitimate execution; nothing where the engine cannot execute otherwise."""
    import numpy as np

    from harness import stats

    loaded = session.loaded
    if not isinstance(loaded, Rerun):
        facts["floor"] = "not measured: this engine has one way to execute"
        return []
    windows = session.windows(question)
    name, scores = loaded.rerun_windows(windows, session.stored_baseline(question))
    few = max(1, FLOOR_TOKENS // len(windows[0]))
    rows = [score.kl for score, _ in zip(scores, range(few), strict=False)]
    kl = np.stack([row for row in rows if row is not None])  # all have one: a stored baseline was given
    facts["floor"] = name
    floor = stats.block_bootstrap_mean(kl)
    return [_interval("kl_floor", floor, f": {name}{suffix}", session.blob("kl_floor", npy(kl), "npy"))]


def _interval(name: str, interval: Interval, suffix: str, blob: str | None) -> Measurement:
    """A measurement with the metric's own definition, limits held within what the metric can be (KL and RMS >= 0, a share <=
    1)."""
    least = 0.0 if name.startswith(("kl_", "kv_kl_")) or name in (*_SHARES, "delta_p_rms") else -float("inf")
    most = 1.0 if name in _SHARES else float("inf")
    return Measurement(
        metric=name,
        value=interval.value,
        low=None if interval.low is None else min(max(interval.low, least), interval.value),
        high=None if interval.high is None else max(min(interval.high, most), interval.value),
        n=interval.n,
        definition=_DEFINITIONS[name] + suffix,
        unit=_UNITS[name],
        blob=blob,
    )
