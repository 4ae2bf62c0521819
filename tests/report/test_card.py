"""The card of an exported artifact says what the record says, and no name in it is anything but text."""

from __future__ import annotations

import dataclasses
import itertools
import re
from html.parser import HTMLParser
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

from harness.artifact import ArtifactRecord, Licence, StoredFile
from harness.errors import BadInput
from harness.report import choose
from harness.report.card import Release, Way, card
from harness.report.cells import OK, CellView
from harness.report.numbers import display, show
from harness.report.view import View, view
from harness.spec import CalibrationText, EnvironmentRecord, Given, Model, Running, Scheme, digest, to_json
from harness.store import Run

FILES = (StoredFile(name="model.safetensors", bytes=3_936_664, sha256="ab" * 32),)
ARTIFACT = ArtifactRecord(digest=digest(FILES), folder="gptq-4-0", files=FILES)
WAY = Way(runtime="vLLM", language="sh", code="vllm serve .", note="Not run by quant-harness.")
RELEASE = Release(library="transformers", ways=(WAY,), licence=Licence(identifier="apache-2.0"))

PAYLOADS = (
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "</td></tr></table><b>", "<!-- ", "<?php",
    "<svg/onload=alert(1)>", "[click](javascript:alert(1))", "![](https://evil.example/x.png)", "<https://evil.example>",
    "https://evil.example/x", "www.evil.example", "me@evil.example", "[a]: https://evil.example", "[^1]", "`code`", "``` \n```",
    "```sh\nrm -rf /\n```", "~~~", "# heading", "\n# heading\n", "\n---\n", "---", "\n---\nlicense: mit\n", "===", "\n===\n",
    "- item", "1. item", "> quote", "**bold**", "__bold__", "*a*", "_a_", "~~gone~~", "a | b", "\\|", "|---|",
    "\n| a | b |\n|---|---|\n| c | d |\n", "&lt;b&gt;", "&#60;b&#62;", "&colon;", "\\<b>", "$x$", "\\(x\\)",
    "$$\\href{javascript:alert(1)}{x}$$", "{{ 7*7 }}", "{% raw %}", "\u202eevil", "\u2066a\u2069", "\u200b", "\x00\x07\x1b[31m",
    "\r\n", "\u2028", "x" * 10_000, "🤯", "👩\u200d💻", "../../etc/passwd", "a: b", "'\"", "!!python/x", "*anchor", "&anchor",
    "%YAML", "? key", "\t", " ", "true", "null", "1e3", "0x1",
)  # fmt: skip
AROUND = (("", ""), ("a ", " b"), ("\n\n", "\n\n"), ("    ", ""))
HOSTILE = [f"{before}{payload}{after}" for payload, (before, after) in itertools.product(PAYLOADS, AROUND)]

PLAIN_TAGS = {"h1", "h2", "h3", "p", "table", "thead", "tbody", "tr", "th", "td", "strong", "code", "pre", "ul", "li"}


class Seen(HTMLParser):
    """What a browser would see of a page: its tags, the attributes of interest, its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.started: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self.other: list[str] = []
        self.feed(page)
        self.close()

    @property
    def tags(self) -> set[str]:
        return set(self.started)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.started.append(tag)
        self.attributes.update(name for name, _ in attrs)

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_comment(self, data: str) -> None:
        self.other.append(data)

    def handle_decl(self, decl: str) -> None:
        self.other.append(decl)

    def handle_pi(self, data: str) -> None:
        self.other.append(data)


def parts(text: str) -> tuple[dict[str, Any], str]:
    """Front matter, as the hub cuts it off, and the rest."""
    found = re.match(r"^(\s*---[\r\n]+)([\S\s]*?)([\r\n]+---(\r\n|\n|$))", text)
    assert found is not None
    return yaml.safe_load(found[2]), text[found.end() :]


def page(body: str) -> Seen:
    return Seen(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(body))


def cell_of(shown: View, label: str) -> CellView:
    return choose.cell(shown, label)


def test_a_card_holds_every_number_of_the_cell_with_its_interval_and_its_definition(shown: View) -> None:
    cell = cell_of(shown, "gptq 4-bit g64")
    front, body = parts(card(shown, cell, ARTIFACT, RELEASE))
    assert front == {
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["quant-harness", "gptq", "4-bit"],
    }
    seen = page(body)
    rows = [line for line in body.splitlines() if line.startswith("| ")]
    columns = [c for c in shown.columns if cell.values[c.key].status == OK]
    assert len(columns) > 20
    for column in columns:
        value = cell.values[column.key]
        number = show(value.value, column.metric.unit, display(column.metric.unit, [value.value]), signed=column.metric.signed)
        plain = number.replace("\u202f", " ")
        mine = [row for row in rows if row.startswith(f"| {column.metric.title} | {column.subject} | {plain}")]
        assert mine, column.key
        assert value.low is None or value.low == value.high or " to " in mine[0]
        assert column.metric.definition in seen.text
    baseline = shown.baseline_of(cell.model)
    assert baseline is not None
    assert f"{baseline.label} (baseline)" in seen.text


def test_the_digests_of_a_card_tie_it_to_the_record(shown: View) -> None:
    cell = cell_of(shown, "gptq 4-bit g64")
    text = card(shown, cell, ARTIFACT, RELEASE)
    records = sorted((o.record for o in cell.outcomes if o.record is not None), key=lambda r: r.key)
    for said in (ARTIFACT.digest, digest(to_json(records)), FILES[0].sha256, "3,936,664", shown.run):
        assert said in text
    other = dataclasses.replace(records[0], seconds=records[0].seconds + 1)
    outcomes = tuple(dataclasses.replace(o, record=other) if o.record is records[0] else o for o in cell.outcomes)
    assert digest(to_json(records)) not in card(shown, dataclasses.replace(cell, outcomes=outcomes), ARTIFACT, RELEASE)


def test_the_same_record_in_any_order_gives_the_same_card(run: Run) -> None:
    texts = set()
    for records in (run.records, run.records[::-1]):
        again = view(dataclasses.replace(run, records=records))
        texts.add(card(again, cell_of(again, "awq 4-bit g64"), ARTIFACT, RELEASE))
    assert len(texts) == 1


def test_a_simulated_cell_says_so_and_shows_no_speed(shown: View) -> None:
    cell = next(c for c in shown.cells if c.simulated)
    _, body = parts(card(shown, cell, ARTIFACT, RELEASE))
    assert "**Simulated**: the runtime that measured it holds these weights dequantized" in body
    assert "would not be those of the scheme" in body, "what is withheld is listed with the reason"
    numbers = body.partition("Not measured:")[0]
    assert not re.search(r"^\| (TPOT|TTFT|Decode|Peak)", numbers, flags=re.MULTILINE)


def test_a_baseline_has_a_card_without_a_column_of_itself(shown: View) -> None:
    _, body = parts(card(shown, next(c for c in shown.cells if c.baseline), ARTIFACT, RELEASE))
    assert "It is the baseline of its run" in body
    assert "(baseline)" not in body
    assert "unquantized" in body


def test_a_licence_that_is_not_known_is_said_not_to_be(shown: View) -> None:
    cell = cell_of(shown, "gptq 4-bit g64")
    front, body = parts(card(shown, cell, ARTIFACT, dataclasses.replace(RELEASE, licence=None)))
    assert "license" not in front
    assert "The licence of the source model was not found beside its weights" in body
    other = Licence(identifier="other", name="gemma", link="https://ai.google.dev/gemma/terms")
    front, body = parts(card(shown, cell, ARTIFACT, dataclasses.replace(RELEASE, licence=other)))
    assert (front["license"], front["license_name"], front["license_link"]) == ("other", "gemma", other.link)
    assert "was not found" not in body


def test_a_model_of_the_hub_is_named_with_its_commit(shown: View) -> None:
    cell = cell_of(shown, "gptq 4-bit g64")
    model = Model(name=cell.model, repo="lab/tiny", commit="c" * 40)
    front, body = parts(card(shown, replaced(cell, model=model), ARTIFACT, RELEASE))
    assert (front["base_model"], front["base_model_relation"]) == ("lab/tiny", "quantized")
    assert f"lab/tiny, commit {'c' * 40}" in body


def test_a_card_names_no_folder_of_the_machine_that_measured(shown: View) -> None:
    commands = ("quant-harness run /a/folder/of/somebody/secret/mine.yaml",)
    cell = cell_of(shown, "gptq 4-bit g64")
    why = "the file '/data/somebody/x/y.txt' is gone: see https://example.org/a/b (and/or 1/2)"
    values = {**cell.values}
    key = next(c.key for c in shown.columns if not c.derived)
    values[key] = dataclasses.replace(values[key], status="error", reason=why)
    _, body = parts(
        card(dataclasses.replace(shown, commands=commands), dataclasses.replace(cell, values=values), ARTIFACT, RELEASE)
    )
    assert "somebody" not in body
    assert "quant-harness run mine.yaml" in body
    assert "the file 'y.txt' is gone: see https\\://example.org/a/b (and/or 1/2)" in body


def test_a_checkpoint_that_was_given_is_no_quantization_of_itself(shown: View) -> None:
    cell = cell_of(shown, "gptq 4-bit g64")
    model = Model(name=cell.model, repo="lab/tiny-gptq")
    for checkpoint, expected in ((model, None), (Model(name="other", repo="lab/other"), "quantized")):
        given = replaced(cell, model=model, origin=Given(scheme=cell.cell.scheme, checkpoint=checkpoint))
        front, body = parts(card(shown, given, ARTIFACT, RELEASE))
        assert front.get("base_model_relation") == expected
        assert "measured as it was given" in body


def replaced(cell: CellView, **fields: Any) -> CellView:
    return dataclasses.replace(cell, cell=dataclasses.replace(cell.cell, **fields))


def hostile(shown: View, text: str) -> tuple[View, CellView, ArtifactRecord, Release]:
    """The view with `text` in every place that a suite, a model, a record or a machine fills."""
    cell = cell_of(shown, "gptq 4-bit g64")
    scheme = Scheme(method=text, bits=4.0, options={text: text, "calibration": {"corpus": text}})
    model = Model(name=text, repo=text, commit=text, file=text)
    bad = replaced(
        cell,
        model=model,
        label=text or "x",
        origin=Given(scheme=scheme, checkpoint=Model(name=text, path=text)),
        running=Running(engine=text, kv=text, execution=text, flags={text: text}),
    )
    facts = {"marks": [text], "engine": {"kernels": {text: text}}, "calibration_overlap": 0.5}
    outcomes = []
    for outcome in cell.outcomes:
        record = outcome.record
        if record is not None and record.answer is not None:
            record = dataclasses.replace(record, environment=text, answer=dataclasses.replace(record.answer, facts=facts))
        outcomes.append(dataclasses.replace(outcome, record=record))
    values = {key: dataclasses.replace(v, status=text, reason=text) if v.status != OK else v for key, v in cell.values.items()}
    bad = dataclasses.replace(bad, outcomes=tuple(outcomes), values=values)
    metric: dict[str, Any] = {"title": text, "definition": text, "description": text, "unit": text}
    columns = tuple(
        dataclasses.replace(c, subject=text, metric=dataclasses.replace(c.metric, **metric)) if number < 3 else c
        for number, c in enumerate(shown.columns)
    )
    seen = CalibrationText(model=text, text=text, words=text, why=text, samples=1, length=1, cells=(bad.label,), overlap={})
    around = dataclasses.replace(
        shown,
        run=text,
        started_at=text,
        columns=columns,
        commands=(text,),
        weights={text: text},
        calibrated_on=(seen,),
        environments=(EnvironmentRecord(name=text, digest=text, python=text, packages={text: text}),),
        context={"machine": {text: [text], "cpu": {text: text}}, "packages": {"torch": text}, "commit": text, "device": text},
    )
    files = (StoredFile(name=text, bytes=1, sha256=text),)
    licence = Licence(identifier=text, name=text, link=text)
    way = Way(runtime=text, language="sh", code=text, note=text)
    return around, bad, ArtifactRecord(digest=text, folder=text, files=files), Release(library=text, ways=(way,), licence=licence)


def test_two_hundred_hostile_names_stay_text_wherever_they_stand(shown: View) -> None:
    assert len(HOSTILE) >= 200
    good = page(parts(card(shown, cell_of(shown, "gptq 4-bit g64"), ARTIFACT, RELEASE))[1])
    for text in HOSTILE:
        written = card(*hostile(shown, text))
        front, body = parts(written)
        assert set(front) <= {
            *("license", "license_name", "license_link", "base_model", "base_model_relation"),
            *("library_name", "pipeline_tag", "tags"),
        }, text
        assert front["pipeline_tag"] == "text-generation", text
        assert front["tags"] in (["quant-harness", "4-bit"], ["quant-harness", text, "4-bit"]), text
        seen = page(body)
        assert seen.tags <= PLAIN_TAGS, (text, seen.tags - PLAIN_TAGS)
        assert seen.attributes <= {"class", "style"}, (text, seen.attributes)
        assert not seen.other, text
        assert len(written) < 200_000, "a long name is cut"
        assert not [c for c in written if not c.isprintable() and c not in "\n\u202f"], text
        assert [seen.started.count(tag) for tag in ("h1", "h2", "h3", "table")] == [1, 5, 1, 4], text
    assert good.tags <= PLAIN_TAGS


def test_a_hostile_name_can_still_be_read(shown: View) -> None:
    for text in (
        "<b>x</b>",
        "a|b",
        "[x](y)",
        "*a* _b_ `c`",
        "# one",
        "$x$ \\(y\\)",
        "a&lt;b",
        "1. first",
        "- second",
        "snake_case",
    ):
        seen = page(parts(card(*hostile(shown, text)))[1])
        assert seen.text.count(text) >= 8, text


def test_a_cell_is_found_by_its_label_or_its_model_and_label(shown: View) -> None:
    cell = choose.cell(shown, "gptq 4-bit g64")
    for name in ("GPTQ 4-bit  g64", f"{cell.model}/gptq 4-bit g64", cell.cell.name):
        assert choose.cell(shown, name) is cell


def test_a_misspelt_cell_is_answered_with_the_nearest(shown: View) -> None:
    with pytest.raises(BadInput, match=r"no cell 'gptq'; did you mean 'gptq 8-bit g64' or 'gptq 4-bit g64'"):
        choose.cell(shown, "gptq")
    with pytest.raises(BadInput, match=r"no cell 'gtpq 4-bit g128'; did you mean 'gptq 4-bit g64'"):
        choose.cell(shown, "gtpq 4-bit g128")
    with pytest.raises(BadInput, match=r"no cell 'zzz'; it has 'bf16'"):
        choose.cell(shown, "zzz")


def test_a_label_of_several_models_asks_which(shown: View) -> None:
    cell = choose.cell(shown, "gptq 4-bit g64")
    twin = replaced(cell, model=Model(name="another"))
    both = dataclasses.replace(shown, cells=(*shown.cells, twin))
    with pytest.raises(BadInput, match=rf"is the name of 2 cells; say which: 'another/gptq 4-bit g64', '{cell.model}/gptq"):
        choose.cell(both, "gptq 4-bit g64")
    assert choose.cell(both, "another/gptq 4-bit g64") is twin
