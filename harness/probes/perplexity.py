"""Perplexity of a cell on a text, under a definition that is always named.

`cached-W+R`: windows are fed in a call of W tokens and calls of R, and only what follows the first call is scored, so that every
answer is read from the keys and values that were cached. A cell that quantizes them is compared with itself at unquantized ones
too; where no answer differs, the setting had no effect, and the cell fails.

`gptq-L` (the default, L = the window): floor(N/L) non-overlapping windows, every target of a window scored, exp of the mean
negative log-likelihood (Frantar et al. 2023). `llamacpp-L`: the first token of each window replaced by BOS where the tokenizer
adds one, only positions from L/2 on scored (llama.cpp's perplexity tool). `rolling-word`, `rolling-byte`, `bits-per-byte`:
lm-eval's rolling log-likelihood over the whole text as one document, in its own windows, per word, per byte, or in bits per byte.

A mean is over the same tokens in every cell of a model. Tokens that are not finite in the baseline are left out of all its cells,
and counted; a cell that has others gets no number but a Nonfinite. So does a rolling sum that lacks any token.

Version 1 (2026-11-21): first definition.
Version 2 (2026-11-28): the bytes of a token are counted on the text, not on the token's name: tokens that are added without being
special counted nothing, and a normalizer or a leading space misled. A mean that lacks tokens which the baseline's has is refused.
(2026-11-30: `cached-W+R` was added, and changes no other definition.)
"""

from __future__ import annotations

import difflib
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from harness.engines.base import Partial, WindowScores, through_cache
from harness.errors import BadInput, NoEffect, Nonfinite, Unsupported
from harness.kv import default_split, split_of
from harness.metrics.perplexity import GROUP
from harness.models import corpora
from harness.probes.base import Probe, Session
from harness.probes.blame import broken
from harness.probes.requests import CorpusRequest, ProbeRequests
from harness.spec import Answer, Json, Measurement, Question, digest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

    from harness.stats import Interval

ROLLING = ("rolling-word", "rolling-byte", "bits-per-byte")
"""What one rolling pass answers; asking for any of them gives all three."""


def questions(requests: ProbeRequests) -> list[Question]:
    """One question per corpus of the suite."""
    return [Question(probe="perplexity", subject=corpus.name, options=corpus_options(corpus)) for corpus in requests.corpora]


def corpus_options(corpus: CorpusRequest) -> dict[str, Json]:
    """What decides the answer on a corpus: `definition`, `window`, `tokens` (limit or None), `corpus_digest`."""
    return {
        "definition": corpus.definition,
        "window": corpus.window,
        "tokens": corpus.tokens,
        "corpus_digest": corpus.digest,
    }


def measure(session: Session, question: Question) -> Answer:
    """Perplexity, bits per byte and the number of non-finite tokens of the question's corpus."""
    answer = _measured(session, question)
    skipped = session.corpus(question).skipped
    return replace(answer, facts={**answer.facts, "skipped_documents": skipped}) if skipped else answer


def _measured(session: Session, question: Question) -> Answer:
    definition = str(question.options["definition"])
    if definition in ROLLING:
        return _rolling(session, question, definition)
    if why := unknown(definition, int(question.options["window"])):
        raise BadInput(f"corpus {question.subject!r}: {why}")
    return _windows(session, question, definition, llamacpp=definition.startswith("llamacpp"))


def unknown(definition: str, window: int) -> str | None:
    """Why there is no such definition of perplexity for windows of so many tokens; None where there is one."""
    split = split_of(definition)
    if split is not None:
        return split.wrong(window)
    known = (f"gptq-{window}", f"llamacpp-{window}", *ROLLING, default_split(window).name)
    if definition in known:
        return None
    near = difflib.get_close_matches(definition, known, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    return f"unknown definition of perplexity {definition!r} for windows of {window} tokens; {hint}"


PROBE = Probe(
    name="perplexity",
    title=GROUP.title,
    version="2",
    metrics=GROUP.metrics,
    isolation="shared",
    questions=questions,
    measure=measure,
    preload=("harness.engines.transformers", "harness.stats"),
    needs_weights=True,
)


# ---------------------------------------------------------------------- one pass over a corpus, shared with divergence


def corpus_pass(session: Session, question: Question, *, compare: bool) -> Mapping[str, NDArray[np.float32]]:
    """Scores of a corpus' windows by name ([windows, T-1] float32; see `WindowScores`), computed once per session.

    `compare`: with the baseline's stored answers, whose absence is an Unsupported. Perplexity does not ask for them, but takes a
    pass that compared, and leaves one behind where the baseline's answers are already there.
    """
    import numpy as np

    split = split_of(str(question.options["definition"]))
    through = "" if split is None else f" {split.name}"
    key = f"scores:{digest({name: question.options[name] for name in ('window', 'tokens', 'corpus_digest')})}{through}"
    known: Mapping[str, NDArray[np.float32]] | None = session.memo.get(key)
    if known is not None and ("kl" in known or not compare):
        return known
    partial = session.loaded.lacks("distributions") if isinstance(session.loaded, Partial) else None
    if compare and partial is not None:
        raise Unsupported(partial)
    stored = None
    # The baseline would write its answers when it is asked for them: only divergence is worth that.
    if compare or not (session.is_baseline or partial):
        try:
            stored = session.stored_baseline(question)
        except Unsupported:
            if compare:
                raise
    windows = session.windows(question)
    rows: dict[str, list[NDArray[np.float32]]] = {}
    if split is None:
        for scores in session.loaded.score_windows(windows, stored):
            _gather(rows, scores)
    else:
        for cached in through_cache(session.loaded).score_cached(windows, split, stored):
            _gather(rows, cached.scores)
            if cached.own is not None:
                _gather(rows, cached.own, OWN)
    scored = {name: np.stack(arrays) for name, arrays in rows.items()}
    _check_effect(session, scored)
    session.memo[key] = scored
    return scored


OWN = "own_"
"""What stands before the names of scores against the cell's own weights with keys and values unquantized."""


def _gather(rows: dict[str, list[NDArray[np.float32]]], scores: WindowScores, prefix: str = "") -> None:
    for name in ("nll", "kl", "same_top", "base_top", "delta_p", "base_nll"):
        values = getattr(scores, name)
        if values is not None:
            rows.setdefault(prefix + name, []).append(values)


def _check_effect(session: Session, scored: Mapping[str, NDArray[np.float32]]) -> None:
    """NoEffect where a cell answers, bit for bit, what it answers with keys and values unquantized: the engine has taken no
    notice of its type, and every number would be another cell's."""
    import numpy as np

    if OWN + "kl" in scored and not np.any(scored[OWN + "kl"]) and np.array_equal(scored[OWN + "nll"], scored[OWN + "base_nll"]):
        raise NoEffect(
            f"setting had no effect: with kv {session.cell.running.kv}, all {scored['nll'].size} scored tokens are answered bit "
            f"for bit as with unquantized keys and values, so {session.cell.running.engine} takes no notice of it"
        )


def _windows(session: Session, question: Question, definition: str, *, llamacpp: bool) -> Answer:
    import numpy as np

    windows = session.windows(question)
    tokenizer = session.loaded.tokenizer
    facts: dict[str, object] = {"windows": len(windows), "window": len(windows[0])}
    first, base = 0, None
    split = split_of(definition)
    if llamacpp:
        bos = _added_bos(tokenizer)
        facts["bos"] = bos
        if bos is not None:
            windows = [[bos, *window[1:]] for window in windows]
        # llama.cpp scores the successors of positions L/2 .. L-2: of the L-1 targets here, those from index L/2 on.
        first = len(windows[0]) // 2
        nll = np.stack([scores.nll for scores in session.loaded.score_windows(windows, None)])[:, first:]
    else:
        scores = corpus_pass(session, question, compare=False)
        nll, base = scores["nll"], scores.get("base_nll")
        if split is not None:
            first, definition = split.warm_up, f"{definition}, windows of {len(windows[0])}"
            facts["through_cache"] = {"warm_up": split.warm_up, "step": split.step, **_own_facts(scores)}
    nll = same_tokens(session, question, nll, base)
    byte_counts = None
    try:
        sizes = corpora.token_bytes(tokenizer, session.corpus(question).text, session.cache / "tokens")
    except Unsupported as reason:
        facts["bits_per_byte"] = f"not given: {reason}"
    else:
        cut = corpora.windows(sizes, len(windows[0]), question.options["tokens"], question.subject)
        byte_counts = np.array(cut, dtype=np.int64)[:, first + 1 :]
    return _answer(session, question, definition, nll, byte_counts, facts)


def _own_facts(scores: Mapping[str, NDArray[np.float32]]) -> dict[str, float]:
    """How many answers differ from those at unquantized keys and values; nothing where the cell's are unquantized."""
    import numpy as np

    if OWN + "kl" not in scores:
        return {}
    return {
        "tokens_changed": int(np.count_nonzero(scores[OWN + "nll"] != scores[OWN + "base_nll"])),
        "tokens": scores["nll"].size,
    }


def same_tokens(
    session: Session, question: Question, values: NDArray[np.float32], base_nll: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    """`values` [windows, targets] of a cell, NaN where the baseline's negative log-likelihoods are not finite. `base_nll` holds
    those, or is None where they are not known.

    Nonfinite where a value is not finite and the baseline's is: the mean of the others would be compared with means over more
    tokens, and what overflows is no random part of a text.
    """
    import numpy as np

    if session.is_baseline:
        return values
    expected = np.ones(values.shape, dtype=bool) if base_nll is None else np.isfinite(base_nll)
    known = int(expected.sum())
    lost = int((expected & ~np.isfinite(values)).sum())
    if lost:
        why = f": {broken(session)}" if 2 * lost > known else ""
        raise Nonfinite(
            f"{session.cell.name}: {lost} of {known} scored tokens of {question.subject!r} are NaN or infinite, where "
            f"the baseline answers them all; no mean over the others is given{why}"
        )
    return np.where(expected, values, np.nan)


def _answer(
    session: Session,
    question: Question,
    definition: str,
    nll: NDArray[np.float32],
    byte_counts: NDArray[np.int64] | None,
    facts: dict[str, object],
) -> Answer:
    """Measurements from [windows, targets] negative log-likelihoods and, where known, the bytes of each target."""
    import numpy as np

    from harness import stats

    finite = np.isfinite(nll)
    bad = int(finite.size - finite.sum())
    if bad == finite.size:
        raise Nonfinite(
            f"{session.cell.name}: all {bad} scored tokens of {question.subject!r} are NaN or infinite; {broken(session)}"
        )
    if bad:
        facts["marked"] = "nonfinite"
        facts["nonfinite_tokens"] = bad
    blob = session.blob("nll", npy(nll), "npy")
    ppl = stats.perplexity_interval(nll)
    measurements = [
        Measurement(
            metric="perplexity", value=ppl.value, low=ppl.low, high=ppl.high, n=ppl.n, definition=definition, unit="", blob=blob
        )
    ]
    if byte_counts is not None:
        kept = np.where(finite, nll, 0.0).astype(np.float64).sum(axis=1) / math.log(2)
        bits = stats.ratio_of_sums(kept, np.where(finite, byte_counts, 0).sum(axis=1), n=ppl.n, excluded=bad)
        measurements.append(
            Measurement(
                metric="bits_per_byte",
                value=bits.value,
                low=bits.low,
                high=bits.high,
                n=ppl.n,
                definition=f"bits-per-byte of {definition}",
                unit="bit/byte",
            )
        )
    measurements.append(_nonfinite(bad, int(finite.size), definition))
    return Answer(measurements=tuple(measurements), facts=facts)


def _nonfinite(bad: int, total: int, definition: str) -> Measurement:
    return Measurement(
        metric="nonfinite_tokens", value=float(bad), n=total, definition=f"non-finite of {definition}", unit="tokens"
    )


# ---------------------------------------------------------------------- rolling log-likelihood


def _rolling(session: Session, question: Question, definition: str) -> Answer:
    """lm-eval's rolling log-likelihood of the whole text: every token predicted once, windows of the model's context length, the
    last one reaching back so that it is full (`lm_eval.utils.get_rolling_token_windows`, context_len 1)."""
    import numpy as np

    from harness import stats

    text = session.corpus(question).text
    nll = _rolling_nll(session, question, definition, text)
    tokens, length = sum(map(len, nll)), int(question.options["window"])
    sums = np.array([part.astype(np.float64).sum() for part in nll])
    bad = int(sum((~np.isfinite(part)).sum() for part in nll))
    if bad:  # the words and bytes of the text are those of all its tokens
        why = f": {broken(session)}" if 2 * bad > tokens else ""
        raise Nonfinite(
            f"{session.cell.name}: {bad} of {tokens} tokens of {question.subject!r} are NaN or infinite, so the text has no "
            f"sum{why}"
        )
    # Counted as lm-eval does: words split at white space, bytes of the UTF-8 text.
    words, size = len(re.split(r"\s+", text)), len(text.encode("utf-8"))
    blob = session.blob("nll", npy(np.concatenate(nll)), "npy")
    facts: dict[str, object] = {"documents": 1, "words": words, "bytes": size, "tokens": tokens, "windows": len(nll)}
    # The interval resamples windows, each with its share of the words and bytes by tokens.
    share = np.array([len(part) for part in nll]) / tokens

    def one(metric: str, interval: Interval, name: str, unit: str) -> Measurement:
        return Measurement(
            metric=metric,
            value=interval.value,
            low=interval.low,
            high=interval.high,
            n=interval.n,
            definition=f"{name}, windows of {length}",
            unit=unit,
            blob=blob,
        )

    results = []
    for name, count in (("rolling-word", words), ("rolling-byte", size)):
        results.append(one("perplexity", stats.ratio_of_sums(sums, share * count, n=tokens).map(math.exp), name, ""))
    # The definition that was asked for comes first.
    results.sort(key=lambda m: not m.definition.startswith(definition))
    bits = stats.ratio_of_sums(sums / math.log(2), share * size, n=tokens)
    results.append(one("bits_per_byte", bits, "bits-per-byte", "bit/byte"))
    results.append(_nonfinite(bad, tokens, definition))
    return Answer(measurements=tuple(results), facts=facts)


def _rolling_nll(session: Session, question: Question, definition: str, text: str) -> list[NDArray[np.float32]]:
    """Negative log-likelihoods of the whole text's tokens in nats, one float32 array per window, each token once."""
    from lm_eval.utils import get_rolling_token_windows

    tokenizer = session.loaded.tokenizer
    ids = list(tokenizer(text, verbose=False)["input_ids"])  # with its special tokens, as lm-eval's `hf` encodes a document
    if question.options["tokens"] is not None and len(ids) > int(question.options["tokens"]):
        raise BadInput(
            f"corpus {question.subject!r}: {definition} scores a whole text ({len(ids)} tokens), so a limit of "
            f"{question.options['tokens']} tokens cannot be kept; drop `tokens` or take a shorter text"
        )
    if not ids:
        raise BadInput(f"corpus {question.subject!r} has no tokens; give a text that is not empty")
    prefix = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if prefix is None:
        raise Unsupported(f"{definition} needs a first token to condition on, and this tokenizer has neither BOS nor EOS")
    length = int(question.options["window"])
    pairs = list(get_rolling_token_windows(ids, prefix_token=prefix, max_seq_len=length, context_len=1))
    scored = session.loaded.score_windows([[*inputs, targets[-1]] for inputs, targets in pairs], None)
    return [scores.nll[-len(targets) :] for scores, (_, targets) in zip(scored, pairs, strict=True)]


# ---------------------------------------------------------------------- small parts


def npy(array: NDArray[np.generic]) -> bytes:
    """An array as the bytes of a .npy file, without pickle."""
    import numpy as np

    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _added_bos(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """BOS if this tokenizer puts it before every text, else None: llama.cpp replaces a window's first token in that case only."""
    bos = tokenizer.bos_token_id
    ids: Sequence[int] = tokenizer("a")["input_ids"]
    return int(bos) if bos is not None and ids and ids[0] == bos else None
