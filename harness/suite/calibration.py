"""What the calibrated methods of a suite see: the text that the suite names, or for each model a default, in words.

The default is, first to last:

1. for the reference model its own calibration text, and for random weights the same: no text is of their kind;
2. what the first of the suite's corpora that has such a thing keeps apart from what is scored (`corpora.kept_apart`);
3. text that the model itself writes (models/sampled.py).

A corpus that is scored is never cut in two: its perplexity would be that of another text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from harness import reference
from harness.errors import BadInput
from harness.formats import config_json
from harness.models import corpora, overlap, sampled
from harness.models.corpora import SAMPLED, Corpus
from harness.spec import CalibrationText, Json, Scheme, digest
from harness.suite.file import CorpusEntry, SuiteFile
from harness.suite.plan import PlannedCell
from harness.suite.sources import Source

DEFAULT = "default"
"""Stands for the default in a scheme that is of no model yet."""

READ_AT_MOST = 1 << 24
"""Bytes. The overlap of larger texts is left to the run, which looks at the rows that are drawn."""


class CalibrationTexts:
    """The texts of a suite, each under a name that no other text has; `by_name` holds those that somebody was given."""

    def __init__(self, written: SuiteFile) -> None:
        """BadInput for a corpus whose `calibration` is none."""
        self._written = written
        self._apart = [apart for apart in map(self._kept_apart, range(len(written.suite.corpora))) if apart is not None]
        self.by_name: dict[str, Corpus] = {}

    def named(self, entry: str | Mapping[str, object], where: str) -> str:
        """The name of a text that the suite names. BadInput or UnknownName for an entry that names none."""
        return self._add(corpora.corpus(entry, self._written.folder, "calibrate", where))

    def default(self, source: Source) -> str:
        """The name of the text for a model, where the suite names none."""
        if _speaks_for_itself(source):
            return self._add(corpora.corpus("reference", self._written.folder, "calibrate"))
        return self._add(self._apart[0][1]) if self._apart else SAMPLED

    def why(self, source: Source) -> str:
        """Why a model's default is what it is."""
        if source.model.random:
            return "any text does for random weights"
        if _speaks_for_itself(source):
            return "the reference model's own; no document of it is scored, and both texts tell of one world"
        if self._apart:
            return f"kept apart from the scored corpus {self._apart[0][0]!r}"
        return "no corpus of the suite keeps a text apart from what is scored"

    def check_length(self, length: int, context: int, model: str) -> None:
        """BadInput where the suite itself names this length of calibration rows, which is beyond a model's context."""
        for where, key, given in self._calibrations():
            if isinstance(given, Mapping) and given.get("length") == length:
                raise BadInput(
                    f"{where}: {key}: length: {length} tokens are more than the context of model {model!r}, {context}; "
                    f"write length: {context}"
                )

    def _calibrations(self) -> Iterator[tuple[str, str, object]]:
        """What the suite says of rows to calibrate or train on: where, under which key, and what."""
        suite = self._written.suite
        for key, of_all in (("calibration", suite.calibration), ("train", suite.train)):
            yield self._written.where(key), key, of_all.model_dump(exclude_unset=True)
            for name, entry in suite.methods.items():
                for grid in entry if isinstance(entry, list) else [entry]:
                    for given in _each((grid or {}).get(key)):
                        yield self._written.where("methods", name), key, given
            for index, extra in enumerate(suite.include):
                for given in _each(extra.get(key)):
                    yield self._written.where("include", index), key, given

    def _kept_apart(self, index: int) -> tuple[str, Corpus] | None:
        """(the scored corpus, what it keeps apart)."""
        entry, where = self._written.suite.corpora[index], self._written.where("corpora", index)
        given = entry.model_dump() if isinstance(entry, CorpusEntry) else entry
        apart = corpora.kept_apart(given, self._written.folder, where)
        if apart is None:
            return None
        scored = corpora.corpus(given, self._written.folder, "measure", where)
        return (entry.name if isinstance(entry, CorpusEntry) and entry.name else scored.name), apart

    def _add(self, source: Corpus) -> str:
        """The text's name: its own, or as much of its place as tells it from its namesakes. A text of the same content is the
        same text, and keeps the first name."""
        if source.sampled:
            return SAMPLED
        for name, other in self.by_name.items():
            if _same(source, other):
                return name
        free = next(name for name in _names(source) if name not in {SAMPLED, DEFAULT, *self.by_name})
        self.by_name[free] = replace(source, name=free)
        return free


def _each(value: object) -> Sequence[object]:
    return value if isinstance(value, list) else [value]


def _speaks_for_itself(source: Source) -> bool:
    return source.model.random or source.model.path in (str(reference.MODEL_DIR), str(reference.TERNARY_DIR))


def _same(one: Corpus, other: Corpus) -> bool:
    if one.path is None or other.path is None:
        return one.path is None and other.path is None and _rows(one) == _rows(other)
    return corpora.digest(Path(one.path)) == corpora.digest(Path(other.path))


def _rows(source: Corpus) -> tuple[str | None, ...]:
    """Which rows of the hub a text is."""
    text = source.hub
    assert text is not None
    return text.repo, text.config, text.splits[source.use], text.column, text.revision


def _names(source: Corpus) -> Iterable[str]:
    """Names for a text, the shortest first; the last one is nobody else's."""
    yield source.name
    if source.hub is not None:
        yield f"{source.name}/{source.hub.splits[source.use]}"
        yield " ".join(part for part in _rows(source) if part is not None)
        return
    parts = Path(str(source.path)).parts
    yield from ("/".join(parts[-length:]) for length in range(1, len(parts) + 1))


def described(
    planned: Sequence[PlannedCell], texts: Mapping[str, Corpus], measured: Mapping[str, Corpus]
) -> tuple[CalibrationText, ...]:
    """What the cells are calibrated on, in words, those of one model and one text together. `texts`: those that are given, by
    name; `measured`: those that are scored."""
    groups: dict[str, list[PlannedCell]] = {}
    for each in planned:
        if option(each.cell.scheme) is not None:
            key = digest([each.cell.model.name, option(each.cell.scheme), each.why_this_text])
            groups.setdefault(key, []).append(each)
    shares: dict[tuple[str, str], float | None] = {}

    def overlap_of(text: str, scored: str) -> float | None:
        if (text, scored) not in shares:
            shares[text, scored] = None if text not in texts else _overlap(texts[text], measured[scored])
        return shares[text, scored]

    said = []
    for cells in groups.values():
        wish = option(cells[0].cell.scheme)
        assert wish is not None
        name = str(wish["corpus"])
        said.append(
            CalibrationText(
                model=cells[0].cell.model.name,
                text=name,
                words=texts[name].words if name in texts else sampled.words(int(wish["seed"])),
                why=cells[0].why_this_text,
                samples=int(wish["samples"]),
                length=int(wish["length"]),
                cells=tuple(each.cell.label for each in cells),
                overlap={scored: overlap_of(name, scored) for scored in measured},
            )
        )
    return tuple(said)


def in_words(text: CalibrationText) -> str:
    """What cells are calibrated on, why, and how much of it is scored."""
    shares = [f"{'the run will say' if share is None else f'{share:.0%}'} ({name})" for name, share in text.overlap.items()]
    scored = f"; also scored, in runs of {overlap.RUN} characters: {', '.join(shares)}" if shares else ""
    return (
        f"{text.model}: {text.samples} rows of {text.length} tokens ({text.tokens:,}), {text.words}: {text.why}{scored}; "
        f"for {', '.join(text.cells)}"
    )


def option(scheme: Scheme) -> Mapping[str, Json] | None:
    """A scheme's option `calibration`: corpus, samples, length, seed. None where it is calibrated on nothing."""
    wish: Mapping[str, Json] | None = scheme.options.get("calibration")
    return wish


def on(scheme: Scheme, texts: CalibrationTexts, source: Source) -> tuple[Scheme, str]:
    """(the scheme with the model's text in the place of the default, why it is this one). Rows are no longer than the model's
    context: libraries cut them there without a word. BadInput where the suite itself names a longer one; the default falls."""
    wish = option(scheme)
    if wish is None:
        return scheme, ""
    why = NAMED
    if wish["corpus"] == DEFAULT:
        wish, why = {**wish, "corpus": texts.default(source)}, texts.why(source)
    context = config_json.context(source.config)
    if context is not None and int(wish["length"]) > context:
        texts.check_length(int(wish["length"]), context, source.name)
        why += f"; rows of {context} tokens, the model's context, in place of the default {wish['length']}"
        wish = {**wish, "length": context}
    return replace(scheme, options={**scheme.options, "calibration": wish}), why


NAMED = "named by the suite"


def _overlap(text: Corpus, scored: Corpus) -> float | None:
    """The share of a text that is scored as well; None where that is not known before the run has fetched both."""
    if text.path is None or scored.path is None:
        return None
    paths = [Path(text.path), Path(scored.path)]
    if any(path.is_dir() or path.stat().st_size > READ_AT_MOST for path in paths):
        return None
    return overlap.share(*map(corpora.text, paths))
