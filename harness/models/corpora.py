"""Texts: what perplexity and divergence are measured on, and what calibrated methods see.

A corpus is ``reference`` (the embedded held-out text), a data set of the hub (``wikitext2``, or any by its id), or a local file
or folder (.txt; .jsonl, JSON Lines with a ``text`` field; .parquet with a ``text`` column). Measuring and calibrating never use
the same text unasked: a known corpus names one for each use, and any other may (`kept_apart`). ``sampled`` is for calibrating
alone: text that the model itself writes (models/sampled.py).
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from harness import reference
from harness.errors import BadInput, UnknownName, Unsupported
from harness.files import draft_file, write_atomically
from harness.models import hub
from harness.spec import digest as digest_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

Use = Literal["measure", "calibrate"]

SAMPLED = "sampled"
"""The name of the text that a model itself writes. No other text has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HubText:
    """A text column of a hub data set; `splits` by use. Rows are joined by two newlines, as the field does for WikiText."""

    repo: str
    config: str | None
    splits: Mapping[Use, str]
    column: str = "text"
    revision: str | None = None


HUB: dict[str, HubText] = {
    "wikitext2": HubText(
        repo="Salesforce/wikitext", config="wikitext-2-raw-v1", splits={"measure": "test", "calibrate": "train"}
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Where a text comes from: a local file or folder (`path`), or a data set of the hub (`hub`)."""

    name: str
    use: Use
    path: str | None
    hub: HubText | None = None
    written: str = ""
    """The path as the suite writes it, for people: two files of one name are told apart by it."""

    @property
    def place(self) -> str:
        """Stands for a hub text in a plan, which has no digest until it is here."""
        text = self.hub
        if text is None or HUB.get(self.name) == text:
            return f"hub:{self.name}"
        return "hub:" + " ".join(str(p) for p in (text.repo, text.config, text.splits[self.use], text.column, text.revision))

    @property
    def sampled(self) -> bool:
        return self.name == SAMPLED and self.path is None and self.hub is None

    @property
    def words(self) -> str:
        """What a text that is given is, for people."""
        if self.path is not None:
            own = Path(self.path) == reference.CALIBRATION_TEXT
            return "the reference corpus' calibration text" if own else self.written or Path(self.path).name
        assert self.hub is not None
        return f"split {self.hub.splits[self.use]!r} of {self.hub.repo}" + (f" ({self.hub.config})" if self.hub.config else "")


def known(use: Use = "measure") -> list[str]:
    return ["reference", *sorted(HUB), *([SAMPLED] if use == "calibrate" else [])]


def corpus(entry: str | Mapping[str, object], base: Path, use: Use, where: str = "") -> Corpus:
    """A suite's entry as a `Corpus`. UnknownName for a name that is not known, BadInput for a path that does not exist."""
    if isinstance(entry, Mapping) and entry.get("path") is not None:
        _check_keys(entry, "path", where)
        path = (base / Path(str(entry["path"])).expanduser()).resolve()
        if not path.exists():
            raise BadInput(f"{where}: no such corpus: {path}; correct `path`")
        if path.is_dir() and not readable(path):
            raise BadInput(f"{where}: {path}: {_NOTHING_TO_READ}; correct `path`")
        return Corpus(name=str(entry.get("name") or path.stem), use=use, path=str(path), written=str(entry["path"]))
    if isinstance(entry, Mapping) and entry.get("repo") is not None:
        return _of_the_hub(entry, use, where)
    if isinstance(entry, Mapping) and entry.get("corpus") is None:
        raise BadInput(f"{where}: a corpus names one of corpus, path and repo; known as `corpus` are {', '.join(known())}")
    name = entry if isinstance(entry, str) else str(entry["corpus"])
    if isinstance(entry, Mapping):
        _check_keys(entry, "corpus", where)
    if name == "reference":
        return Corpus(name=name, use=use, path=str(reference.HELDOUT_TEXT if use == "measure" else reference.CALIBRATION_TEXT))
    if name == SAMPLED and use == "calibrate":
        return Corpus(name=name, use=use, path=None)
    if name not in HUB:
        if _looks_like_a_file(name, base):
            raise BadInput(f"{where}: {name!r} is no known corpus; a file of your own is written {{path: {name}}}")
        raise UnknownName("corpus", name, known(use), where)
    return Corpus(name=name, use=use, path=None, hub=HUB[name])


def _looks_like_a_file(name: str, base: Path) -> bool:
    return name.startswith((".", "/", "~")) or Path(name).suffix.lower() in _SUFFIXES or (bool(name) and (base / name).exists())


def kept_apart(entry: str | Mapping[str, object], base: Path, where: str = "") -> Corpus | None:
    """The text to calibrate on that an entry of a suite's `corpora` keeps apart from what is scored: the split of a known
    corpus, or what the entry says with `calibration` (another split of its data set, another file). None where there is none:
    what is scored is not cut in two. BadInput for a split or file that is what is scored.

    Nor has ``reference`` one: its text is the world of the reference model, and says nothing of another."""
    given = {"corpus": entry} if isinstance(entry, str) else entry
    other = given.get("calibration")
    if other is None:
        held = HUB.get(str(given.get("corpus")))
        return None if held is None or "calibrate" not in held.splits else corpus(str(given["corpus"]), base, "calibrate", where)
    if given.get("path") is None and given.get("repo") is None:
        raise BadInput(f"{where}: `calibration` belongs to a corpus with `path` or `repo`; {given.get('corpus')!r} has its own")
    if given.get("path") is not None:
        apart = corpus({"path": other}, base, "calibrate", where)
        same = (base / Path(str(given["path"])).expanduser()).resolve() == Path(str(apart.path))
    else:
        apart, same = corpus({**given, "split": other}, base, "calibrate", where), other == given.get("split")
    if same:
        raise BadInput(f"{where}: `calibration` names {other!r}, which is what is scored; name another one, or leave it out")
    return apart


_FOR_THE_HUB = ("repo", "config", "split", "column", "revision")


def _check_keys(entry: Mapping[str, object], kind: str, where: str) -> None:
    """BadInput where an entry names its text twice, or says of one that is not on the hub what is for the hub."""
    others = [key for key in ("path", "corpus", *_FOR_THE_HUB) if key != kind and entry.get(key) is not None]
    if others:
        raise BadInput(f"{where}: a corpus with `{kind}` takes no `{others[0]}`; a data set of the hub is written with `repo`")


def _of_the_hub(entry: Mapping[str, object], use: Use, where: str) -> Corpus:
    if entry.get("corpus") is not None:
        raise BadInput(f"{where}: a corpus names one of path, corpus and repo, this one `repo` and `corpus`")
    repo = str(entry["repo"])
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", repo):
        raise BadInput(f"{where}: {repo!r} is no id of a data set on the hub (owner/name)")
    if entry.get("split") is None:
        raise BadInput(f"{where}: {repo}: name a `split`, such as {'test' if use == 'measure' else 'train'}")
    text = HubText(
        repo=repo,
        config=None if entry.get("config") is None else str(entry["config"]),
        splits={use: str(entry["split"])},
        column=str(entry.get("column") or "text"),
        revision=None if entry.get("revision") is None else str(entry["revision"]),
    )
    return Corpus(name=str(entry.get("name") or repo.split("/")[-1]), use=use, path=None, hub=text)


def fetch(source: Corpus, cache: Path) -> Path:
    """The corpus (none that a model writes) as one local UTF-8 text file or folder; of a hub data set, the text at the commit
    that its revision names now, written into `cache` once for each commit. BadInput says why it cannot be had."""
    if source.path is not None:
        return Path(source.path)
    text, what = source.hub, f"corpus {source.name!r}"
    assert text is not None
    commit = hub.commit(text.repo, text.revision, kind="dataset", what=what)
    if commit is None:
        raise hub.unreachable(text.repo, what=what, instead=_LOCAL_TEXT)
    split = text.splits[source.use]
    place = digest_of([text.repo, text.config, split, text.column, commit])[:32]
    target = cache / "corpora" / f"{text.repo.replace('/', '--')}-{place}.txt"
    if target.is_file():
        return target
    hub.check_access(text.repo, kind="dataset", what=what)
    rows = _rows(text, split, commit, what)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, "\n\n".join(row for row in rows if row is not None))
    return target


_LOCAL_TEXT = "name a local file: corpora: [{path: text.txt}]"


def _rows(text: HubText, split: str, commit: str, what: str) -> Sequence[str | None]:
    """The texts of a data set's column at a commit."""
    import datasets

    try:
        held: Any = hub.rows(text.repo, text.config, commit, load=datasets.load_dataset, split=split)
    except ValueError as error:  # no such configuration or split: the library lists those that there are
        said = " ".join(str(error).split())
        raise BadInput(f"{what}: {text.repo} ({text.config or 'default'}, {split}) cannot be read: {said}") from None
    except Exception as error:  # the library raises its own errors, the hub's and its HTTP client's for the same cause
        raise hub.refusal_of_data(error, text.repo, what=what, instead=_LOCAL_TEXT) from None
    if text.column not in held.column_names:
        raise BadInput(f"{what}: {text.repo} has no column {text.column!r}; its columns: {', '.join(held.column_names)}")
    rows: Sequence[str | None] = held[text.column]
    if any(row is not None and not isinstance(row, str) for row in rows):
        raise BadInput(f"{what}: column {text.column!r} of {text.repo} holds no text; name another one with `column`")
    return rows


READER_VERSION = 2
"""Raised when the same bytes are read as another text.
2: a byte order mark is no text, nor is null; nothing but a newline ends a line of JSON."""

_LINES = (".jsonl", ".ndjson")
_SUFFIXES = (".txt", *_LINES, ".parquet")
_NOTHING_TO_READ = "holds no .txt, .jsonl or .parquet file to read text from"


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """What a corpus says. `documents` were joined by two newlines; `skipped` had no text (null)."""

    text: str
    documents: int
    skipped: int = 0


def read(path: Path) -> Text:
    """The text of a local file, or of all readable files of a folder in name order.

    UTF-8; a byte order mark is dropped, and the end of a line is a newline however it is written (CR LF, CR). BadInput says what
    is no text.
    """
    if path.is_dir():
        files = readable(path)
        if not files:
            raise BadInput(f"{path}: {_NOTHING_TO_READ}")
        parts = [read(p) for p in files]
        joined = "\n\n".join(part.text for part in parts)
        return Text(text=joined, documents=sum(p.documents for p in parts), skipped=sum(p.skipped for p in parts))
    if path.suffix.lower() in _LINES:
        return _joined(path, _of_lines(path))
    if path.suffix.lower() == ".parquet":
        return _joined(path, _of_parquet(path))
    return Text(text=_decoded(path).replace("\r\n", "\n").replace("\r", "\n"), documents=1)


def readable(folder: Path) -> list[Path]:
    """The files of a folder that `read` reads, in name order."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES and p.is_file())


def text(path: Path) -> str:
    """The text of `read` alone."""
    return read(path).text


def _decoded(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{path}: is not UTF-8 text (byte {error.start}); convert it first: iconv -f latin1 -t utf-8 OLD > NEW"
        ) from None


def _joined(path: Path, documents: Iterable[tuple[str, object]]) -> Text:
    """Documents, each with its place in the file, as one text; null ones are skipped and counted."""
    kept: list[str] = []
    skipped = 0
    for place, document in documents:
        if document is None:
            skipped += 1
            continue
        if not isinstance(document, str):
            raise BadInput(f"{path}, {place}: `text` holds {document!r:.40}, where a string belongs")
        try:
            document.encode("utf-8")
        except UnicodeEncodeError:
            raise BadInput(f"{path}, {place}: `text` holds half a surrogate pair, which is no character; mend it") from None
        kept.append(document)
    return Text(text="\n\n".join(kept), documents=len(kept), skipped=skipped)


def _of_lines(path: Path) -> Iterator[tuple[str, object]]:
    """JSON Lines: a value ends at a newline and nowhere else (U+2028 and U+0085 may stand in a string as they are)."""
    for number, line in enumerate(_decoded(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise BadInput(f"{path}, line {number}: is no JSON ({error}); each line is an object with a `text` field") from None
        if not isinstance(entry, dict) or "text" not in entry:
            raise BadInput(f"{path}, line {number}: each line must be an object with a `text` field")
        yield f"line {number}", entry["text"]


def _of_parquet(path: Path) -> Iterator[tuple[str, object]]:
    import pyarrow
    import pyarrow.parquet

    try:
        names = pyarrow.parquet.read_schema(path).names
        if "text" not in names:
            raise BadInput(f"{path}: has no column `text`; columns: {', '.join(names)}")
        column = pyarrow.parquet.read_table(path, columns=["text"]).column("text")
    except pyarrow.ArrowInvalid as error:
        raise BadInput(f"{path}: cannot be read as Parquet ({error})") from None
    for number, value in enumerate(column.to_pylist(), 1):
        yield f"row {number}", value


def digest(path: Path) -> str:
    """SHA-256 of the text's bytes (all files of a folder, in name order, with their names) and of how they are read."""
    hasher = hashlib.sha256(f"reader {READER_VERSION}\n".encode())
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    for file in files:
        if path.is_dir():
            hasher.update(str(file.relative_to(path)).encode() + b"\0")
        with file.open("rb") as handle:
            while chunk := handle.read(1 << 22):
                hasher.update(chunk)
    return hasher.hexdigest()


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of all that decides how a transformers tokenizer encodes."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else _written_in_python(tokenizer)
    settings = [type(tokenizer).__name__, tokenizer.special_tokens_map, getattr(tokenizer, "split_special_tokens", False)]
    special = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256((rules + special).encode()).hexdigest()


def _written_in_python(tokenizer: PreTrainedTokenizerBase) -> str:
    """The rules of a tokenizer whose code is Python: its vocabulary, its arguments, and the contents of the files they name."""
    given = {name: value for name, value in tokenizer.init_kwargs.items() if name != "name_or_path"}
    files = {name: value for name, value in given.items() if isinstance(value, str) and Path(value).is_file()}
    contents = {name: digest(Path(value)) for name, value in files.items()}
    return json.dumps([sorted(tokenizer.get_vocab().items()), {**given, **contents}], sort_keys=True, default=str)


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str, cache: Path) -> Sequence[int]:
    """The token ids of a text, from `cache` where some cell has encoded it before: the same for all cells of a model."""
    import numpy as np

    def encode() -> NDArray[np.int64]:
        return np.array(tokenizer(text, verbose=False)["input_ids"], dtype=np.int64)

    return cast(Sequence[int], _kept(cache / f"{_encoding(tokenizer, text)}.npy", encode))


def token_bytes(tokenizer: PreTrainedTokenizerBase, text: str, cache: Path) -> Sequence[int]:
    """Bytes of the text (UTF-8) that each of its `token_ids` stands for: in all, every byte of the text, each once. See
    `bytes_of_spans`. Kept in `cache`, like the ids.

    Unsupported for a tokenizer that does not say which part of a text a token stands for.
    """

    def encode() -> NDArray[np.int64]:
        if not getattr(tokenizer, "is_fast", False):
            raise Unsupported("this tokenizer does not say which part of the text a token stands for")
        return bytes_of_spans(text, tokenizer(text, verbose=False, return_offsets_mapping=True)["offset_mapping"])

    return cast(Sequence[int], _kept(cache / f"{_encoding(tokenizer, text)}.bytes.npy", encode))


def bytes_of_spans(text: str, spans: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """Bytes of `text` (UTF-8) by token (numpy int64), from the span of characters [start, end) that each token stands for.

    A token counts what lies between the furthest end before it and its own end: text that no token names (a space that is
    trimmed off, a character that a normalizer drops) counts to the token after it, at the end of the text to the last one. Tokens
    of one character (its bytes) share its bytes. An empty span at the start (BOS, EOS) counts nothing.

    Unsupported where the spans do not run through the text from front to back.
    """
    import numpy as np

    characters = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    widths = 1 + (characters >= 0x80).astype(np.int64) + (characters >= 0x800) + (characters >= 0x10000)
    before = [0, *np.cumsum(widths).tolist()]  # bytes of the text before each character
    groups: list[tuple[int, list[int]]] = []  # (end in characters, the tokens that stand for what leads up to it)
    reached = earlier = 0
    for token, (start, end) in enumerate(spans):
        if end > len(text) or (start < end and start < earlier):
            raise Unsupported("this tokenizer's tokens do not follow the text from front to back")
        earlier = start if start < end else earlier
        if end > reached:
            groups.append((end, [token]))
            reached = end
        elif start < end:
            groups[-1][1].append(token)
    if text and not groups:
        raise Unsupported("this tokenizer does not say which part of the text a token stands for")
    counts = np.zeros(len(spans), dtype=np.int64)
    done = 0
    for end, tokens in [*groups[:-1], *((len(text), tokens) for _, tokens in groups[-1:])]:
        share, spare = divmod(before[end] - done, len(tokens))
        counts[tokens] = [share + (place < spare) for place in range(len(tokens))]
        done = before[end]
    return counts


def _encoding(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """A name for what a tokenizer makes of a text."""
    return hashlib.sha256(f"{tokenizer_digest(tokenizer)} {tokenizer.bos_token_id}\n{text}".encode()).hexdigest()


def _kept(path: Path, encode: Callable[[], NDArray[np.int64]]) -> NDArray[np.int64]:
    """The array in the file `path`, made by `encode` and written there if it is not there or cut off."""
    import numpy as np

    try:
        array: NDArray[np.int64] = np.load(path, allow_pickle=False)
        return array
    except (OSError, ValueError):
        array = encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with draft_file(path) as draft, draft.open("wb") as file:
        np.save(file, array, allow_pickle=False)
    return array


def windows(ids: Sequence[int], length: int, tokens: int | None, name: str) -> list[list[int]]:
    """floor(N / length) non-overlapping windows of token ids, at most `tokens` ids in all (DEFINITIONS: `gptq-L`)."""
    count = len(ids) // length
    if count == 0:
        raise BadInput(
            f"corpus {name!r} has {len(ids)} tokens, fewer than one window of {length}; use a longer text or a smaller `window`"
        )
    if tokens is not None:
        count = max(1, min(count, tokens // length))
    return [[int(token) for token in ids[i * length : (i + 1) * length]] for i in range(count)]


def calibration_rows(ids: Sequence[int], *, samples: int, length: int, seed: int, name: str) -> list[list[int]]:
    """`samples` rows of `length` ids at seeded random starts, as GPTQ's authors draw them (Frantar et al. 2023, section 4). A
    text that a model has sampled is random already: its rows are its first ones, none of which overlap."""
    if name == SAMPLED:
        return windows(ids, length, samples * length, name)
    if len(ids) < length + 1:
        raise BadInput(
            f"calibration corpus {name!r} has {len(ids)} tokens, fewer than one row of {length} and the token after it; "
            + ("lower calibration.length, or use a longer text" if len(ids) > 8 else "use a longer text")
        )
    draw = random.Random(seed)
    starts = [draw.randrange(len(ids) - length) for _ in range(samples)]
    return [[int(token) for token in ids[s : s + length]] for s in starts]
