"""The page: pure, closed to the network, escaped, and complete."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import hashlib
import html.parser
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from harness import store
from harness.frontier import Standing, Status
from harness.report import View, render, render_view, terminal_table
from harness.report.cells import CellView
from harness.report.markup import Markup, data_block, el, join, text
from harness.report.numbers import display, show, show_interval, with_unit
from harness.report.table import standing_words
from harness.spec import Failure, Model, PlanRecord, Record
from tests.report import synthetic

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&\x00"


class Parsed(html.parser.HTMLParser):
    """Elements, ids, attributes and the text outside scripts and styles; scripts and data, unpacked."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self._inside: list[str] = []
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in {"script", "style"}:
            self._inside.append(tag)
            if tag == "script":
                self.scripts.append("")
                self._packed = ("type", "application/gzip") in attrs

    def handle_endtag(self, tag: str) -> None:
        if tag in {"script", "style"}:
            self._inside.pop()
            if tag == "script" and self._packed:
                self.scripts[-1] = gzip.decompress(base64.b64decode(self.scripts[-1])).decode()

    def handle_data(self, data: str) -> None:
        if not self._inside:
            self.texts.append(data)
        elif self._inside[-1] == "script":
            self.scripts[-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="module")
def page(shown: View) -> bytes:
    return render_view(shown)


@pytest.fixture(scope="module")
def parsed(page: bytes) -> Parsed:
    return Parsed(page)


def test_the_same_records_in_any_order_give_equal_bytes(tmp_path: Path) -> None:
    pages = {render(store.read(synthetic.write(tmp_path / str(order), shuffle=order, small=True))) for order in (None, 1, 2)}
    assert len(pages) == 1


def test_other_records_give_another_page(page: bytes, tmp_path: Path) -> None:
    assert render(store.read(synthetic.write(tmp_path, seed=1, small=True))) != page


def test_every_planned_cell_and_unsupported_square_is_on_the_page(parsed: Parsed) -> None:
    rows = [attributes["data-cell"] for tag, attributes in parsed.tags if "data-cell" in attributes]
    assert len(rows) == 22
    for label in ("bf16", "awq 2-bit g64", "hqq 2-bit g64", "inc 4-bit g64", "bnb 3-bit", "bnb 2-bit"):
        assert label in parsed.text
    assert "out of memory" in parsed.text
    assert "timed out" in parsed.text
    assert "bnb does not offer 3 bits" in parsed.text
    assert "Killed" in parsed.text, "the log's tail is shown"


def test_all_sections_are_there_and_linked(parsed: Parsed) -> None:
    ids = {attributes["id"] for tag, attributes in parsed.tags if tag == "section"}
    first, below = {"summary", "pareto", "table", "tasks", "ladder"}, {"divergence", "memory", "latency", "examples", "making"}
    assert ids == first | below | {"failures", "notes", "glossary", "provenance"}
    links = {attributes["href"] for tag, attributes in parsed.tags if tag == "a"}
    assert {f"#{i}" for i in ids} <= links
    every = [attributes["id"] for tag, attributes in parsed.tags if "id" in attributes]
    assert len(every) == len(set(every))


def test_the_page_names_machine_commit_versions_and_the_command(parsed: Parsed) -> None:
    for fact in ("Synthetic CPU @ 2.0 GHz", "0123456789abcdef", "gptqmodel", "7.6.0", "quant-harness run quick.yaml", "17.2 GB"):
        assert fact in parsed.text


def test_the_table_shows_what_ran_in_each_cell_and_which_is_simulated(tmp_path: Path) -> None:
    def edit(record: Record) -> Record:
        if record.answer is None or record.question.probe != "perplexity":
            return record
        kernel = f"{record.cell.method.capitalize()}Linear (aten::{record.cell.method}, int32)"
        layers = {kernel: ["model.layers.0-5.mlp.up_proj"]}
        facts = {"engine": {"name": "transformers", "device": "cpu", "kernels": {kernel: 42}, "layers": layers, "notes": []}}
        return dataclasses.replace(record, answer=dataclasses.replace(record.answer, facts=facts))

    page = Parsed(render(store.read(synthetic.write(tmp_path, edit=edit, small=True))))
    for method in ("gptq", "awq", "hqq", "bnb"):
        kernel = f"{method.capitalize()}Linear (aten::{method}, int32)"
        assert f"42 × {kernel}" in page.text
        assert any(tags.get("data-tip") == f"{kernel}: model.layers.0-5.mlp.up_proj" for _, tags in page.tags)
    assert "Simulated at run time (weights held dequantized), so without memory and latency: inc 4-bit g64." in page.text


def test_the_page_says_how_the_baselines_answers_are_kept_in_both_sizes(parsed: Parsed) -> None:
    said = (
        "reference bf16 on reference: kept as final hidden states (bfloat16), 3.917 MB, 128.0 times smaller than its logits in "
        "float16 (501.4 MB); the output head beside them takes 4.194 MB"
    )
    assert said in parsed.text
    assert parsed.text.count("times smaller than its logits") == 1, "of the baseline, and once"


def test_nothing_on_the_page_can_reach_the_network(parsed: Parsed) -> None:
    for tag, attributes in parsed.tags:
        assert tag not in {"link", "iframe", "object", "embed", "img", "form", "base", "video", "audio"}
        assert "src" not in attributes
        assert not [name for name in attributes if name.startswith("on")]
        if "href" in attributes:
            assert str(attributes["href"]).startswith("#")
    policy = next(a["content"] for t, a in parsed.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "connect-src 'none'" in policy
    assert not re.search(r"https?:|\*|'unsafe-eval'", policy)


def test_the_policy_allows_exactly_the_scripts_of_the_page(parsed: Parsed) -> None:
    policy = next(str(a["content"]) for t, a in parsed.tags if t == "meta" and "http-equiv" in a)
    data, offered, *scripts = parsed.scripts
    json.loads(data)
    json.loads(offered)
    assert "plotly.js" in scripts[0][:300]
    digests = [f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts]
    assert len(digests) == 2
    assert f"script-src {' '.join(digests)};" in policy


def test_the_style_sheet_asks_for_nothing() -> None:
    for file in (Path(sys.modules["harness.report"].__path__[0]) / "assets").glob("*.css"):
        style = file.read_text()
        assert "url(" not in style
        assert "@import" not in style


def test_hostile_names_reasons_and_logs_are_text_and_never_markup(tmp_path: Path) -> None:
    def fail(r: Record) -> Record:
        if r.cell.label != "rtn 3-bit g64":
            return r
        return dataclasses.replace(
            r, answer=None, failure=Failure(kind="error", phase=HOSTILE, message=HOSTILE, log_tail=HOSTILE)
        )

    run = store.read(synthetic.write(tmp_path, models=(HOSTILE,), edit=fail, small=True))
    context = dataclasses.replace(run.header.context, commit=HOSTILE, packages={HOSTILE: HOSTILE}, machine={HOSTILE: [HOSTILE]})
    plan = dataclasses.replace(
        run.plan,
        suite={"name": HOSTILE, "title": HOSTILE},
        commands=(HOSTILE,),
        unsupported=tuple(dataclasses.replace(u, reason=HOSTILE) for u in run.plan.unsupported),
    )
    header = dataclasses.replace(run.header, run=HOSTILE, started_at=HOSTILE, context=context)
    hostile = dataclasses.replace(run, header=header, plan=plan)
    found = Parsed(render(hostile))
    assert len(found.scripts) == 4
    assert "<script>alert(1)</script>" in found.text.replace("\ufffd", "")
    assert not [tag for tag, _ in found.tags if tag == "img"]
    assert not [a for _, attributes in found.tags for a in attributes if a.startswith("on")]
    assert json.loads(found.scripts[0])["models"] == [HOSTILE]
    assert "</script" not in found.scripts[0] + found.scripts[1]


def test_a_simulated_cell_is_complete_without_what_it_may_not_show(shown: View, parsed: Parsed) -> None:
    simulated = next(c for c in shown.cells if c.simulated)
    held = [o for o in simulated.outcomes if o.failure is not None]
    assert held
    assert all("simulated" in o.failure.message for o in held if o.failure is not None)
    words = f"; {len(held)} on memory and speed are withheld, because the weights of one cell are simulated"
    whole = sum(all(o.status == "ok" for o in c.outcomes) for c in shown.cells)
    assert f"{whole + 1} of {len(shown.cells)} cells complete" in parsed.text
    assert words in parsed.text


def test_a_simulated_cell_shows_neither_latency_nor_memory_on_the_page(page: bytes) -> None:
    data = json.loads(Parsed(page).scripts[0])
    simulated = next(c for c in data["cells"] if c["label"] == "inc 4-bit g64")
    held = [i for i, c in enumerate(data["columns"]) if re.match(r"(peak_|weight_|kv_|ttft|tpot|throughput)", c["key"])]
    assert len(held) > 5
    assert all(simulated["v"][i] is None and simulated["t"][i] == "simulated" for i in held)
    assert simulated["v"][data["quality"][0]] is not None


def test_pages_of_empty_and_unfinished_runs_are_drawn(run: store.Run, tmp_path: Path) -> None:
    waiting = Parsed(render(dataclasses.replace(run, records=(), end=None)))
    assert waiting.text.count("not run") > 22
    assert "This run has not ended: 286 planned questions have no answer yet" in waiting.text
    context = dataclasses.replace(run.header.context, commit=None, machine={}, packages={})
    header = dataclasses.replace(run.header, started_at="", context=context)
    bare = dataclasses.replace(run, header=header, plan=PlanRecord(), records=())
    assert "quant-harness" in Parsed(render(bare)).text


def test_missing_blobs_are_told_and_do_not_stop_the_page(tmp_path: Path) -> None:
    run = store.read(synthetic.write(tmp_path, small=True))
    for file in (tmp_path / "blobs").rglob("*.*"):
        file.unlink()
    found = Parsed(render(run))
    assert "are not on disk" in found.text
    assert "not comparable" in found.text


def test_several_models_get_a_menu_and_a_heat_map_each(tmp_path: Path) -> None:
    found = Parsed(render(store.read(synthetic.write(tmp_path, models=("one", "two"), small=True))))
    assert [a["id"] for t, a in found.tags if t == "select" and str(a["id"]).endswith("-model")] == [
        "pareto-model",
        "ladder-model",
    ]
    assert "Accuracy differences of one" in found.text
    assert "Accuracy differences of two" in found.text


def test_the_share_of_resamples_is_told_as_that_on_the_frontier_whatever_the_status() -> None:
    rivals: dict[Status, str] = {"frontier": "", "tied": "a, b", "dominated": "a"}
    said = {status: standing_words(Standing(id="c1", status=status, probability=0.18), names) for status, names in rivals.items()}
    assert said == {
        "frontier": "on the frontier; on the frontier in 18\u202f% of resamples",
        "tied": "tied with the frontier; worse only within the noise than a, b; on the frontier in 18\u202f% of resamples",
        "dominated": "beaten by the frontier; worse beyond the noise than a; on the frontier in 18\u202f% of resamples",
    }


def test_a_suspicious_cell_is_named(tmp_path: Path) -> None:
    """More bits of the same method and options must not be worse: such a path is most likely broken."""

    def swap(r: Record) -> Record:
        if r.question.probe == "divergence" and r.cell.label == "rtn 8-bit g64" and r.answer is not None:
            worse = tuple(dataclasses.replace(m, value=0.9, low=0.8, high=1.0) for m in r.answer.measurements)
            return dataclasses.replace(r, answer=dataclasses.replace(r.answer, measurements=worse))
        return r

    found = Parsed(render(store.read(synthetic.write(tmp_path, edit=swap, small=True))))
    assert "Suspicious: rtn 8-bit g64 has a worse KL divergence, reference than rtn 4-bit g64" in found.text


def test_rendering_imports_no_torch_and_no_runner(tmp_path: Path) -> None:
    path = synthetic.write(tmp_path, small=True)
    code = (
        "import sys; from pathlib import Path; from harness import store; from harness.report import render;"
        f"render(store.read(Path({str(path)!r})));"
        "bad = {'torch', 'transformers', 'lm_eval', 'harness.run.runner', 'harness.child.worker'};"
        "print(sorted(bad & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_terminal_table_has_every_cell_and_marks_the_frontier(shown: View) -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(terminal_table(shown))
    drawn = console.export_text()
    assert all(c.label in drawn for c in shown.cells)
    assert "●" in drawn
    assert " oom" in drawn
    assert "inc 4-bit g64, simulated" in drawn
    assert "frontier" in drawn


def test_the_page_says_at_which_commit_a_model_of_the_hub_was_measured(shown: View) -> None:
    model = Model(name=shown.cells[0].model, repo="lab/<tiny>", revision="main", commit="c0ffee" + 34 * "0")
    cells = tuple(dataclasses.replace(c, cell=dataclasses.replace(c.cell, model=model)) for c in shown.cells)
    page = render_view(dataclasses.replace(shown, cells=cells, weights={model.name: "abcdef0123456789"})).decode()
    assert f"lab/&lt;tiny&gt;, revision main, commit {model.commit}, weights abcdef012345<" in page


def test_a_long_name_in_the_terminal_is_broken_and_its_numbers_are_whole(shown: View) -> None:
    def drawn(cells: tuple[CellView, ...]) -> str:
        console = Console(width=80, record=True, file=io.StringIO())
        console.print(terminal_table(dataclasses.replace(shown, cells=cells)))
        return console.export_text()

    long = dataclasses.replace(shown.cells[0].cell, label="a label of many words " * 4)
    row = next(line for line in drawn(shown.cells).splitlines() if line.startswith(shown.cells[0].label))
    numbers = re.findall(r"\d[\d.\u202f]*\d", row.removeprefix(shown.cells[0].label))
    whole = drawn((dataclasses.replace(shown.cells[0], cell=long), *shown.cells[1:]))
    assert len(numbers) >= 3
    assert all(number in whole for number in numbers)
    assert "…" not in whole


def test_what_several_cells_are_marked_with_is_said_once(shown: View) -> None:
    def marked(cell: CellView) -> CellView:
        outcomes = []
        for outcome in cell.outcomes:
            if outcome.record is not None and outcome.record.answer is not None:
                answer = dataclasses.replace(outcome.record.answer, facts={**outcome.record.answer.facts, "marks": ["too wide"]})
                outcome = dataclasses.replace(outcome, record=dataclasses.replace(outcome.record, answer=answer))
            outcomes.append(outcome)
        return dataclasses.replace(cell, outcomes=tuple(outcomes))

    answered = [c for c in shown.cells if any(o.record is not None and o.record.answer is not None for o in c.outcomes)][:2]
    cells = tuple(marked(c) if c in answered else c for c in shown.cells)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(terminal_table(dataclasses.replace(shown, cells=cells)))
    names = [c.cell.name if len(shown.models) > 1 else c.label for c in answered]
    assert console.export_text().count(f"{names[0]}, {names[1]}: too wide") == 1


# ---------------------------------------------------------------------- markup and numbers


def test_markup_escapes_every_plain_string_and_only_those() -> None:
    assert el("b", "<i>", Markup("<u></u>")) == "<b>&lt;i&gt;<u></u></b>"
    assert el("a", "x", href='"><script>') == '<a href="&quot;&gt;&lt;script&gt;">x</a>'
    assert el("br") == "<br>"
    assert el("p", None, hidden=True, id=None) == "<p hidden></p>"
    assert join("a", None, "&") == "a&amp;"
    assert text("a\x00b\x1b") == "a\ufffdb\ufffd"
    with pytest.raises(ValueError, match="no attribute name"):
        el("p", **{"on click": "x"})


def test_a_data_block_cannot_be_ended_by_its_data() -> None:
    block = data_block("d", {"x": "</script><!--\u2028"})
    assert block.count("<") == 2
    assert json.loads(Parsed(block.encode()).scripts[0]) == {"x": "</script><!--\u2028"}


@pytest.mark.parametrize(
    ("value", "unit", "written"),
    [
        (92.4812, "", "92.48"),
        (0.000203, "nat", "0.000203 nats"),
        (1234567.0, "B", "1.235 MB"),
        (0.00392, "s", "3.920 ms"),
        (0.9551, "share", "95.5\u202f%"),
        (-1.04, "points", "\u22121.0 points"),
        (4.125, "bit/weight", "4.125 bits/weight"),
        (0.0001, "p", "< 0.001"),
        (12345.0, "tokens/s", "12\u202f345 tokens/s"),
        (0.0, "nat", "0 nats"),
    ],
)
def test_numbers_are_written_as_people_read_them(value: float, unit: str, written: str) -> None:
    how = display(unit, [value])
    assert with_unit(show(value, unit, how), how) == written


def test_an_interval_has_the_digits_of_its_value_and_none_has_no_text() -> None:
    how = display("share", [0.5])
    assert show_interval(0.4321, 0.5678, "share", how, value=0.5) == "43.2 to 56.8"
    assert show_interval(None, 0.5, "share", how, value=0.5) == ""
    assert show_interval(0.0, 0.0, "share", how, value=0.0) == ""
    assert show(-0.01, "points", signed=True) == "±0.0"
    assert show(float("nan"), "") == "not a number"
