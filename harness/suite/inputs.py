"""What can be wrong with a suite's texts and files and is known before anything runs: an empty text, a window that no model's
context holds, a GGUF file that was made of another model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from harness.errors import BadInput
from harness.formats import config_json
from harness.methods import gguf_file
from harness.models import corpora, find
from harness.models.corpora import Corpus
from harness.probes.requests import CorpusRequest
from harness.suite.calibration import option
from harness.suite.file import SuiteFile
from harness.suite.plan import PlannedCell
from harness.suite.sources import Source

READ_AT_MOST = 1 << 20
"""Bytes. A larger text is not read for a plan: it is long enough for any window."""

BYTES_OF_A_TOKEN = 16
"""A text with more bytes per wanted token than this is taken to be long enough; fewer are counted."""


def check(written: SuiteFile, sources: Sequence[Source], texts: Mapping[str, Corpus], asked: Iterable[CorpusRequest]) -> None:
    """BadInput, with the line, for the first thing that is wrong."""
    for index, request in enumerate(asked):
        place = written.where("corpora", index)
        _check_window(place, request, sources)
        _check_length(place, request, texts[request.name], sources)
    for source in sources:
        if source.of is not None:
            _check_origin(written.where("models"), source, next(s for s in sources if s.model == source.of))


def _check_window(place: str, request: CorpusRequest, sources: Sequence[Source]) -> None:
    for source in sources:
        context = None if source.model.random else config_json.context(source.config)  # random weights are asked no text
        if context is not None and context < request.window:
            raise BadInput(
                f"{place}: window: {request.window} tokens are more than the context of model {source.name!r}, {context}; "
                f"write window: {context}"
            )


def beyond_context(written: SuiteFile, sources: Sequence[Source]) -> list[str]:
    """A line for each prompt to time or weigh, and each number of new tokens, that is more than a model's context, where the
    suite leaves it at the default. BadInput for one that the suite writes."""
    suite, said = written.suite, []
    for probe, prompts, settings in (
        ("latency", suite.latency.prompt, suite.latency),
        ("memory", [suite.memory.prompt], suite.memory),
    ):
        for source in sources if probe in suite.probes else ():
            context = config_json.context(source.config)
            for key, tokens in (("prompt", max(prompts)), ("new", settings.new)):
                if context is None or tokens <= context:
                    continue
                what = f"a prompt of {tokens} tokens is" if key == "prompt" else f"new: {tokens} tokens are"
                what = f"{probe}: {what} more than the context of model {source.name!r}, {context}"
                right = f"write {probe}: {{{key}: {[context] if (probe, key) == ('latency', 'prompt') else context}}}"
                if key in settings.model_fields_set:
                    raise BadInput(f"{written.where(probe, key)}: {what}; {right}")
                said.append(f"{what}, and this is the default; {right}")
    return said


def _check_length(place: str, request: CorpusRequest, corpus: Corpus, sources: Sequence[Source]) -> None:
    """A text of fewer tokens than a window. A token stands for at least one byte, so that few bytes are few tokens; where more of
    them may be too few, a model's tokenizer counts."""
    path = None if corpus.path is None else Path(corpus.path)
    if path is None or sum(p.stat().st_size for p in (corpora.readable(path) if path.is_dir() else [path])) > READ_AT_MOST:
        return
    try:
        text = corpora.text(path)
    except BadInput as error:
        raise BadInput(f"{place}: {error}") from None
    size = len(text.encode())
    if size > BYTES_OF_A_TOKEN * request.window:
        return
    counts = [size, *(_tokens(text, source) for source in sources)]
    if min(counts) < request.window:
        what = f"{min(counts)} tokens" if min(counts) < size else f"{size} bytes of text"
        remedy = "use a longer text or a smaller `window`" if size else "write a text into it, or name another one"
        raise BadInput(f"{place}: {path} holds {what}, fewer than one window of {request.window} tokens; {remedy}")


def check_calibration(
    written: SuiteFile, sources: Sequence[Source], cells: Sequence[PlannedCell], texts: Mapping[str, Corpus]
) -> None:
    """BadInput for a text that a cell is calibrated on and that is shorter than one row, for the cell's own model."""
    by_model = {source.model: source for source in sources}
    seen: set[tuple[str, str, int]] = set()
    for cell in (each.cell for each in cells):
        wish = option(cell.scheme)
        corpus = None if wish is None else texts.get(str(wish["corpus"]))
        if wish is None or corpus is None or corpus.path is None:
            continue
        path, length = Path(corpus.path), int(wish["length"])
        if (cell.model.name, corpus.path, length) in seen:
            continue
        seen.add((cell.model.name, corpus.path, length))
        if not path.is_dir() and path.stat().st_size > READ_AT_MOST:
            continue
        text = corpora.text(path)  # BadInput for a folder without texts, and for what is no text
        size = len(text.encode())
        count = _tokens(text, by_model[cell.model]) if size <= BYTES_OF_A_TOKEN * length else size
        if count < length + 1:
            what = "no text" if not text.strip() else f"{count} tokens" if count < size else f"{size} bytes of text"
            remedy = f"use a longer text, or lower `length` below {count}" if count > CALIBRATION_LEAST else "use a longer text"
            raise BadInput(
                f"{written.where('calibration')}: {path}, on which {cell.name} is calibrated, holds {what}, fewer than one "
                f"row of {length} tokens and the one that follows it; {remedy}"
            )


CALIBRATION_LEAST = 8
"""Tokens. A suite takes no shorter rows."""


def _tokens(text: str, source: Source) -> int:
    """Tokens of the text for a model whose tokenizer is here, or a number that is large enough."""
    folder = find.locate(source.model)
    file = None if folder is None else folder / "tokenizer.json"
    if file is None or not file.is_file():
        return len(text.encode())
    from tokenizers import Tokenizer

    try:
        return len(Tokenizer.from_file(str(file)).encode(text).ids)
    except Exception:  # the library has no type of its own for a damaged file, which is not this check's to tell
        return len(text.encode())


def _check_origin(place: str, source: Source, made_of: Source) -> None:
    if source.shape is None or made_of.shape is None or not find.is_one_file(source.model):
        return
    if why := gguf_file.another_model(source.shape, made_of.config):
        raise BadInput(f"{place}: {source.name!r} {why}; correct `of`")
