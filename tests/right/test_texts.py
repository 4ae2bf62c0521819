"""Corpora are read as their formats say: JSON Lines, Parquet, plain text; what is no text is skipped and counted, or refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from harness.engines.transformers import Transformers
from harness.errors import BadInput
from harness.models import corpora
from harness.probes.perplexity import PROBE
from harness.suite.matrix import plan
from tests.tiny_llama import TinySession, corpus_question, llama, text, tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

BOM = b"\xef\xbb\xbf"
ODD = ["one\u2028two", "three\x85four", "five\u2029six", "seven\x0b\x0c\x1ceight"]
"""Characters at which Python's `splitlines` ends a line, and JSON Lines does not."""


def lines(path: Path, documents: Sequence[Any], *, ascii_only: bool = False, end: str = "\n") -> Path:
    rows = [json.dumps({"text": document}, ensure_ascii=ascii_only) for document in documents]
    path.write_bytes("".join(row + end for row in rows).encode())
    return path


def parquet(path: Path, column: Any, name: str = "text") -> Path:
    pyarrow.parquet.write_table(pyarrow.table({name: column, "id": [1] * len(column)}), path)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "A.JSONL"])
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("ascii_only", [True, False], ids=["escaped", "raw"])
def test_a_line_of_json_ends_at_a_newline_and_nowhere_else(ascii_only: bool, end: str, name: str, tmp_path: Path) -> None:
    path = lines(tmp_path / name, ODD, ascii_only=ascii_only, end=end)
    assert corpora.read(path) == corpora.Text(text="\n\n".join(ODD), documents=4)


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.jsonl"])
def test_a_byte_order_mark_is_no_text(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text("the river\n") if name != "a.jsonl" else lines(path, ["the river\n"])
    plain = corpora.text(path)
    path.write_bytes(BOM + path.read_bytes())
    assert corpora.text(path) == plain == "the river\n"


def test_a_byte_order_mark_inside_a_text_stays(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a\ufeffb", encoding="utf-8")
    assert corpora.text(tmp_path / "a.txt") == "a\ufeffb"


@pytest.mark.parametrize("end", ["\r\n", "\r"])
def test_ends_of_lines_are_one_newline_however_they_are_written(end: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(f"one{end}two{end}{end}three".encode())
    assert corpora.text(tmp_path / "a.txt") == "one\ntwo\n\nthree"


def test_null_documents_are_skipped_and_counted(tmp_path: Path) -> None:
    rows = ["one", None, "", None, "two"]
    wanted = corpora.Text(text="one\n\n\n\ntwo", documents=3, skipped=2)
    assert corpora.read(lines(tmp_path / "a.jsonl", rows)) == wanted
    assert corpora.read(parquet(tmp_path / "a.parquet", pyarrow.array(rows))) == wanted
    assert corpora.read(parquet(tmp_path / "b.parquet", pyarrow.array(rows).dictionary_encode())) == wanted
    assert corpora.read(parquet(tmp_path / "c.parquet", pyarrow.array(rows, pyarrow.large_string()))) == wanted


def test_the_files_of_a_folder_count_together(tmp_path: Path) -> None:
    lines(tmp_path / "a.jsonl", ["one", None])
    parquet(tmp_path / "b.parquet", pyarrow.array([None, "two"]))
    (tmp_path / "c.txt").write_bytes(BOM + b"three")
    assert corpora.read(tmp_path) == corpora.Text(text="one\n\ntwo\n\nthree", documents=3, skipped=2)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"text": 3}', "line 2: `text` holds 3, where"),
        ('{"text": ["a"]}', "line 2: `text` holds .'a'., where"),
        ('{"txt": "a"}', "line 2: each line must be an object with a `text` field"),
        ('["a"]', "line 2: each line must be an object"),
        ('{"text": "a"', "line 2: is no JSON"),
        ('{"text": "a\\ud83d"}', "line 2: `text` holds half a surrogate pair"),
    ],
)
def test_what_is_no_text_is_refused_with_its_line(line: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(BadInput, match=said):
        corpora.read(tmp_path / "a.jsonl")


def test_a_column_of_numbers_and_a_missing_column_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="row 1: `text` holds 1, where"):
        corpora.read(parquet(tmp_path / "a.parquet", pyarrow.array([1, 2])))
    with pytest.raises(BadInput, match="has no column `text`; columns: body, id"):
        corpora.read(parquet(tmp_path / "b.parquet", pyarrow.array(["a"]), name="body"))
    (tmp_path / "c.parquet").write_bytes(b"no parquet at all")
    with pytest.raises(BadInput, match=r"c\.parquet: cannot be read as Parquet"):
        corpora.read(tmp_path / "c.parquet")


@pytest.mark.parametrize("data", ["caf\xe9".encode("latin-1"), "the river".encode("utf-16")], ids=["Latin-1", "UTF-16"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_another_encoding_is_refused_and_the_byte_named(data: bytes, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(BadInput, match=r"is not UTF-8 text \(byte \d\); convert it first: iconv"):
        corpora.read(tmp_path / name)


def test_another_way_of_reading_is_another_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("the river")
    before = corpora.digest(tmp_path / "a.txt")
    monkeypatch.setattr(corpora, "READER_VERSION", corpora.READER_VERSION + 1)
    assert corpora.digest(tmp_path / "a.txt") != before


def test_the_record_says_how_many_documents_had_no_text(tmp_path: Path) -> None:
    class Session(TinySession):
        def corpus(self, question: Any) -> corpora.Text:
            return corpora.Text(text=self._corpus, documents=1, skipped=2)

    engine = Transformers(llama(), tokenizer())
    answer = PROBE.measure(Session(engine, tmp_path, corpus=text(60)), corpus_question("perplexity"))
    assert answer.facts["skipped_documents"] == 2
    answer = PROBE.measure(TinySession(engine, tmp_path, corpus=text(60)), corpus_question("perplexity"))
    assert "skipped_documents" not in answer.facts


def test_a_suite_that_begins_with_a_byte_order_mark_is_read(write_suite: Any) -> None:
    path = write_suite("{bits: 4}")
    cells = plan(path, device="cpu").cells
    path.write_bytes(BOM + path.read_bytes())
    assert plan(path, device="cpu").cells == cells
