"""The sections below the first screen, read as a person reads them: what stands there, and from which numbers."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import store
from harness.errors import HarnessError
from harness.report import (
    View,
    divergence,
    layer_errors,
    layers,
    machines,
    making,
    memory,
    notes,
    pieces,
    render,
    render_view,
    speed,
    view,
    worst,
)
from harness.report.making import duration
from harness.report.markup import el
from harness.report.notes import ranged
from harness.report.section import Section
from harness.report.svg import MOST_ROWS, Dot, Row, Scale, chart, span, steps
from harness.spec import RunHeader
from tests.report import browser, enriched
from tests.report.test_report import Parsed

PROGRAM = browser.find()
MADE = (divergence, memory, speed, layers, worst, making, notes)


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> View:
    return view(enriched.read(tmp_path_factory.mktemp("rich")))


def body(section: Section | None) -> Parsed:
    assert section is not None
    return Parsed(str(section.body).encode())


def rows(section: Section | None, caption: str) -> dict[str, list[str]]:
    """The squares of a table by the text of the first one of each row."""
    assert section is not None
    frame = next(one for one in re.findall(r"<table.*?</table>", section.body, re.DOTALL) if f">{caption}</caption>" in one)
    found = {}
    for line in re.findall(r"<tr>(.*?)</tr>", frame.split("<tbody>")[1], re.DOTALL):
        squares = [" ".join(Parsed(s.encode()).text.split()) for s in re.findall(r"<t[hd].*?</t[hd]>", line, re.DOTALL)]
        found[squares[0]] = squares[1:]
    return found


# ---- the charts themselves ----


def test_a_value_stands_where_its_share_of_the_axis_is_and_beyond_the_end_at_the_end() -> None:
    linear, logarithmic = Scale(low=0, high=200), Scale(low=0.001, high=1000, log=True)
    assert [linear.percent(v) for v in (0, 50, 200, 900, -5)] == [0, 25, 100, 100, 0]
    assert [round(logarithmic.percent(v), 6) for v in (0.001, 1, 1000, 1e9)] == [0, 50, 100, 100]
    assert logarithmic.percent(0) == 0


@pytest.mark.parametrize(
    ("values", "log"), [([3.1, 47], False), ([2e-9, 4], True), ([5.0], True), ([-2, 9], False), ([31, 38], True)]
)
def test_a_scale_holds_its_values_and_has_a_few_round_ticks(values: list[float], log: bool) -> None:
    scale = span(values, log=log)
    assert scale is not None
    assert scale.low <= min(values) <= max(values) <= scale.high
    assert 2 <= len(scale.ticks()) <= 8
    assert all(scale.low * (1 - 1e-6) <= tick <= scale.high * (1 + 1e-6) for tick in scale.ticks() if log)


def test_there_is_no_scale_of_nothing() -> None:
    assert span([], log=False) is None
    assert span([0.0, -1.0], log=True) is None


def test_a_chart_is_one_image_with_a_label_and_says_what_it_leaves_out() -> None:
    many = [Row(label=f"cell {n}", text=str(n), dots=[Dot(value=n, hue=0, tip="<b>")]) for n in range(MOST_ROWS + 5)]
    drawn = chart("what & how", many, Scale(low=0, high=50), str)
    image = ElementTree.fromstring(re.search(r"<svg.*</svg>", drawn, re.DOTALL)[0])  # type: ignore[index]
    assert (image.get("role"), image.get("aria-label")) == ("img", "what & how")
    assert f"The first {MOST_ROWS} of {MOST_ROWS + 5} are drawn" in drawn
    assert len(image.findall("svg")) == MOST_ROWS


def test_the_outline_of_a_histogram_rises_to_its_share_of_the_highest() -> None:
    assert steps([0, 1, 1, 0.5], 1) == "M0 100H1V0H2H3V50H4V100Z"
    assert steps([0, 0], 0) == "M0 100H2"


# ---- section by section ----


@pytest.mark.parametrize("made", MADE, ids=lambda m: m.__name__.rpartition(".")[2])
def test_every_chart_has_a_label_and_a_table_beneath_it(rich: View, made: object) -> None:
    section = made.section(rich)  # type: ignore[attr-defined]
    parsed = body(section)
    images = [attributes for tag, attributes in parsed.tags if tag == "svg" and attributes.get("role") == "img"]
    assert all(attributes.get("aria-label") for attributes in images)
    tables = sum(tag == "table" for tag, _ in parsed.tags)
    assert not images or tables >= 1
    assert all(attributes.get("role") == "region" for _, attributes in parsed.tags if attributes.get("class") == "scroll")


def test_weight_errors_stand_by_cell_and_layer_as_the_samples_have_them(rich: View) -> None:
    section = layers.section(rich)
    table = rows(section, "Relative weight error by cell")
    assert set(table) == {c.label for c in rich.cells if c.cell.method in ("rtn", "gptq")}
    assert table["gptq 3-bit g64"] == ["3", "0.2500", "0.2500", "0.3750", "2.mlp.up_proj", "7.000", "0.mlp.up_proj"]
    assert table["rtn 3-bit g64"][-2:] == ["–", "–"], "it says nothing of outputs"
    single = rows(section, "Relative weight error by layer")
    labels = [c.label for c in rich.cells if c.cell.method in ("rtn", "gptq")]
    assert single["model.layers.1.mlp.up_proj"][labels.index("rtn 4-bit g64")] == "0.125"


def test_without_samples_on_disk_no_layer_has_an_error(rich: View) -> None:
    def gone(name: str) -> bytes:
        raise FileNotFoundError(name)

    section = layers.section(dataclasses.replace(rich, blob=gone))
    assert "Weight error" not in body(section).text
    assert "Table of stored widths" in body(section).text


def test_more_layers_than_the_page_has_room_for_are_counted(rich: View, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_errors, "MOST_LAYERS", 2)
    section = layers.section(rich)
    assert set(rows(section, "Relative weight error by layer")) == {f"model.layers.{n}.mlp.up_proj" for n in (0, 1)}
    assert "2 of 3 layers" in body(section).text


def test_percentiles_are_the_records_and_the_floor_is_drawn(rich: View) -> None:
    section = divergence.section(rich)
    table = rows(section, "KL divergence on reference, nats")
    cell = next(c for c in rich.cells if c.label == "rtn 4-bit g64")
    column = rich.column("kl_p99", "reference")
    assert column is not None
    at = 1 + ["median", "90 %", "95 %", "99 %", "largest"].index("99 %")
    assert float(table["rtn 4-bit g64"][at]) == pytest.approx(cell.values[column.key].value, rel=1e-3)
    assert "noise floor, 2.0e-05 nats" in body(section).text
    assert any(attributes.get("class") == "floor" for _, attributes in body(section).tags)
    assert any(attributes.get("class") == "against" for _, attributes in body(section).tags)


def test_shares_beyond_a_divergence_are_counted_from_the_raw_samples(rich: View) -> None:
    import io

    import numpy as np

    cell = next(c for c in rich.cells if c.label == "gptq 3-bit g64")
    blob = next(m.blob for o in cell.outcomes for m in o.measurements if m.metric == "kl_mean")
    samples = np.load(io.BytesIO(rich.blob(str(blob))))
    table = rows(divergence.section(rich), "Share of tokens beyond a divergence on reference")
    assert table["gptq 3-bit g64"] == [f"{float((samples > limit).mean()):.2%}" for limit in divergence.LIMITS]


def test_without_samples_on_disk_there_is_no_histogram_and_the_page_says_so(rich: View) -> None:
    def gone(name: str) -> bytes:
        raise FileNotFoundError(name)

    section = divergence.section(dataclasses.replace(rich, blob=gone))
    assert "The histograms need raw samples, and none are on disk" in body(section).text
    assert "Table of percentiles" in body(section).text


def test_memory_bars_are_components_one_after_another_up_to_the_peak_of_decoding(rich: View) -> None:
    table = rows(memory.section(rich), "Memory, 512 tokens of prompt, 64 new, batch 1")
    weights, cache, rest, load, prefill, decode = (float(x) for x in table["rtn 4-bit g64"][:6])
    assert weights + cache + rest == pytest.approx(decode, rel=1e-3)
    assert load < decode < prefill
    assert "awq 2-bit g64" not in table, "it failed"
    assert "inc 4-bit g64" not in table, "simulated: withheld"


def test_peaks_are_called_in_the_section_of_memory_as_in_the_table_of_all_cells(rich: View) -> None:
    section = memory.section(rich)
    assert section is not None
    peaks = [c.metric.title for c in rich.columns if c.metric.name in ("peak_load_bytes", "peak_decode_bytes", "peak_host_bytes")]
    assert peaks
    assert all(f">{title}<" in section.body for title in peaks), section.body[:2000]


def test_latency_is_by_prompt_length_with_the_share_of_the_roofline_and_the_kernels_that_ran(rich: View) -> None:
    section = speed.section(rich)
    text = body(section).text
    assert "after 128 tokens" in text
    assert "after 512 tokens" in text
    assert f"42 × {enriched.KERNEL}" in text
    table = rows(section, "Latency at pp512 tg64 b1")
    assert table["gptq 4-bit g64"][1] == "0.8000"
    assert table["gptq 4-bit g64"][-1] == "31.0"
    assert "inc 4-bit g64" not in table, "simulated: withheld"


def test_layers_are_drawn_where_widths_are_mixed_only(rich: View) -> None:
    section = layers.section(rich)
    assert section is not None
    widths = section.body.partition("Weight error")[0]
    assert widths.count('class="name"') == 3, "hqq at 4, 3 and 2 bits keeps some layers in 9; at 8 bits that is one width"
    assert "cells store all of these layers in about as many bits each" in body(section).text
    assert "model.layers.0-5.mlp.up_proj" in body(section).text


def test_flipped_items_stand_with_their_text_and_the_cells_that_flip_them(rich: View) -> None:
    section = worst.section(rich)
    table = rows(section, "reference_recall: lost by most cells")
    first = next(iter(table))
    assert re.fullmatch(r"Question \d+ of reference_recall\?", first)
    right, count, which = table[first]
    number = int(first.split()[1])
    base = next(c for c in rich.cells if c.baseline)
    answers = {c.label: _answers(rich, c.label) for c in rich.cells}
    lost = [label for label, own in answers.items() if own and answers[base.label][number] and not own[number]]
    assert count == f"{len(lost)} of 20"
    assert which == f"which {', '.join(lost)}"
    assert right.startswith(("yes", "no")[number % 2])


def _answers(shown: View, label: str) -> list[bool]:
    cell = next(c for c in shown.cells if c.label == label)
    outcome = next(o for o in cell.outcomes if o.question.subject == "reference_recall")
    return (
        [bool(row["correct"]) for row in json.loads(shown.blob(str(outcome.measurements[0].blob)))["items"]]
        if outcome.measurements
        else []
    )


def test_the_items_of_older_runs_are_named_by_their_place(shown: View) -> None:
    text = body(worst.section(shown)).text
    assert "The texts of these items were not kept" in text
    assert "Tokens with the largest divergence" not in text


def test_tokens_with_the_largest_divergence_stand_in_their_context(rich: View) -> None:
    section = worst.section(rich)
    assert section is not None
    assert "the capital of gptq 2-bit g64 is<mark> Paris</mark> now" in section.body
    table = rows(section, "gptq 2-bit g64 on reference: tokens with the largest divergence")
    ((kl, before, after, same),) = table.values()
    cell = next(c for c in rich.cells if c.label == "gptq 2-bit g64")
    column = rich.column("kl_max", "reference")
    assert column is not None
    assert float(kl) == pytest.approx(cell.values[column.key].value, abs=5e-4)
    assert (before, after, same) == ("87.0%", "2.0%", "no")


def test_what_it_took_stands_beside_what_was_forecast(rich: View) -> None:
    table = rows(making.section(rich), "Forecast against elapsed")
    assert table["gptq 4-bit g64"] == ["70 s", "30 s to 90 s", "tasks 60 s, quantize 1.5 s"]


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.0044, "0.0044 s"), (3.14, "3.1 s"), (59.7, "60 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_durations_are_written_for_people(seconds: float, said: str) -> None:
    assert duration(seconds) == said


# ---- notes ----


def test_notes_that_differ_in_their_numbers_are_one_with_the_least_and_the_largest() -> None:
    assert ranged(["used 12% of 2 cores", "used 7% of 2 cores", "used 31.5% of 2 cores"]) == "used 7 to 31.5% of 2 cores"
    assert ranged(["needs 1.2.3", "needs 1.10.0"]) == "needs 1.10.0 to 1.2.3"


def test_no_note_stands_twice_and_the_cells_are_behind_a_fold(rich: View) -> None:
    found = notes.notes(rich)
    assert len({(n.kind, n.text) for n in found}) == len(found)
    busy = [n for n in found if "Not alone" in n.text]
    assert len(busy) == 1
    assert re.fullmatch(r"Not alone: other processes used \d+ to \d+% of all CPU time while this was timed", busy[0].text)
    assert len(busy[0].lines) == 38, "19 cells were timed at two shapes"
    engine = [n for n in found if n.text == "One note"]
    assert [len(n.lines) for n in engine] == [21], "once for each cell, whatever it was asked"
    assert body(notes.section(rich)).tags.count(("details", {})) == sum(bool(n.lines) for n in found)


def test_the_first_screen_points_to_the_notes_and_holds_none(rich: View) -> None:
    page = render_view(rich).decode()
    first = page[page.index('<section id="summary"') : page.index('<section id="pareto"')]
    assert "not alone" not in first.lower()
    assert 'href="#notes"' in first


# ---- several runs ----


@pytest.fixture(scope="module")
def two(rich: View) -> tuple[View, View]:
    """The same cells on another machine, half as slow, with one item answered otherwise."""
    context = {**rich.context, "machine": {"cpu": "Other CPU"}, "packages": {"torch": "9.9"}}
    cells = []
    for cell in rich.cells:
        values = {
            key: dataclasses.replace(v, value=v.value / 2, low=None, high=None) if key.startswith(("tpot", "ttft")) else v
            for key, v in cell.values.items()
        }
        cells.append(dataclasses.replace(cell, values=values))
    return rich, dataclasses.replace(rich, run="other", started_at="2026-12-01T00:00:00Z", context=context, cells=tuple(cells))


def test_one_run_has_no_section_of_runs(rich: View) -> None:
    assert machines.section([rich]) is None


def test_equal_cells_are_compared_in_quality_item_by_item(two: tuple[View, View]) -> None:
    table = rows(machines.section(two), "Accuracy, reference_facts")
    assert table["gptq 4-bit g64"][-1] == "B: 0 of 40 items answered otherwise"
    table = rows(machines.section(two), "Perplexity, reference")
    assert table["gptq 4-bit g64"][-1] == "B: the same number"


def test_speed_stands_by_machine_and_no_chart_is_without_its_name(two: tuple[View, View]) -> None:
    section = machines.section(two)
    table = rows(section, "Time per output token, pp512 tg64 b1")
    assert table["gptq 4-bit g64"][-1] == "B: 0.50 ×"
    labels = [a["aria-label"] for tag, a in body(section).tags if tag == "svg" and a.get("role") == "img"]
    assert labels
    assert all(("A: Synthetic CPU @ 2.0 GHz, 2026-11-21" in str(x)) != ("B: Other CPU, 2026-12-01" in str(x)) for x in labels)
    assert "torch" in rows(section, "Packages that differ")


def test_cells_of_other_weights_are_not_the_same_cells(two: tuple[View, View]) -> None:
    one, other = (
        dataclasses.replace(v, weights={"reference": digest}) for v, digest in zip(two, ("a" * 64, "b" * 64), strict=True)
    )
    assert "No cell of the first run is in another one" in body(machines.section([one, other])).text


def test_the_path_of_a_model_is_a_machines_own(two: tuple[View, View]) -> None:
    one, other = (dataclasses.replace(v, weights={"reference": "a" * 64}) for v in two)
    moved = tuple(
        dataclasses.replace(c, cell=dataclasses.replace(c.cell, model=dataclasses.replace(c.cell.model, path="/elsewhere")))
        for c in other.cells
    )
    assert "B: the same number" in body(machines.section([one, dataclasses.replace(other, cells=moved)])).text


def test_numbers_of_two_definitions_are_never_side_by_side(two: tuple[View, View]) -> None:
    def renamed(key: str) -> str:
        return key.replace("gptq-256", "gptq-512")

    columns = tuple(dataclasses.replace(c, key=renamed(c.key)) for c in two[1].columns)
    cells = tuple(dataclasses.replace(c, values={renamed(k): v for k, v in c.values.items()}) for c in two[1].cells)
    section = machines.section([two[0], dataclasses.replace(two[1], columns=columns, cells=cells)])
    assert section is not None
    assert "Perplexity, reference" not in section.body


def test_the_report_of_two_runs_has_the_first_as_its_subject(two: tuple[View, View]) -> None:
    parsed = Parsed(render_view(*two))
    ids = [attributes["id"] for tag, attributes in parsed.tags if tag == "section"]
    assert ids[:2] == ["summary", "machines"]
    every = [attributes["id"] for tag, attributes in parsed.tags if "id" in attributes]
    assert len(every) == len(set(every))


# ---- pure ----


@pytest.mark.slow
def test_the_same_records_and_costs_in_any_order_give_equal_bytes(tmp_path: Path) -> None:
    run = enriched.read(tmp_path)
    records, costs = list(run.records), list(run.costs)
    random.Random(3).shuffle(records)
    random.Random(4).shuffle(costs)
    assert render(dataclasses.replace(run, records=tuple(records), costs=tuple(costs))) == render(run)


@pytest.mark.slow
def test_several_models_are_one_below_the_other_the_later_ones_folded(tmp_path: Path) -> None:
    section = memory.section(view(enriched.read(tmp_path, models=("one", "two"))))
    assert section is not None
    assert "<h3>one</h3>" in section.body
    assert "<summary>two</summary>" in section.body


def test_what_is_left_out_of_many_models_is_said(rich: View) -> None:
    names = tuple(f"m{n}" for n in range(9))
    made = pieces.by_model(dataclasses.replace(rich, models=names), lambda name: None if name == "m0" else el("p", name))
    text = Parsed("".join(made).encode()).text
    assert [name for name in names if name in text] == [f"m{n}" for n in range(1, 7)]
    assert "2 more models are left out here" in text


def test_a_side_car_of_another_form_is_no_side_car(rich: View) -> None:
    for data in (b"", b"[]", b"null", b'{"items": 3}', b'{"items": [3, null]}', b'{"tokens": {"a": 1}}', b"\xff", b"[" * 10_000):
        broken = dataclasses.replace(rich, blob=lambda name, data=data: data)  # type: ignore[misc]
        assert worst.section(broken) is None
        assert divergence.section(broken) is not None

    def refused(name: str) -> bytes:
        raise HarnessError("no blob's name")

    assert worst.section(dataclasses.replace(rich, blob=refused)) is None


def test_costs_are_read_with_the_run(tmp_path: Path) -> None:
    run = enriched.read(tmp_path)
    path = tmp_path / "20261122T000000Z-again.jsonl"
    header: RunHeader = dataclasses.replace(run.header, run="again")
    with store.Writer(path, header) as writer:
        writer.plan(run.plan)
        for cost in run.costs[:3]:
            writer.cost(cost)
    assert store.read(path).costs == run.costs[:3]


# ---- in a real browser ----


@pytest.fixture(scope="module")
def page(two: tuple[View, View], tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Page]:
    if PROGRAM is None:
        pytest.skip(browser.LACKING)
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_bytes(render_view(*two))
    with browser.page(PROGRAM) as opened:
        opened.open(path, width=360)
        yield opened


@pytest.mark.slow
def test_a_phone_shows_no_wider_page_and_no_error(page: browser.Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.errors == []


@pytest.mark.slow
def test_what_is_shown_of_a_table_is_copied_as_markdown(page: browser.Page) -> None:
    find = "[...document.querySelectorAll('#latency table')].find(t => t.caption.textContent === 'Latency at pp512 tg64 b1')"
    page.evaluate(f"{find}.closest('details').open = true")
    lines = page.evaluate(f"quantHarnessMarkdown({find})").splitlines()
    assert lines[0].startswith("| Cell | Per token ms | × baseline ")
    assert set(lines[1]) <= set("| -:")
    assert any(line.startswith("| gptq 4-bit g64 | ") for line in lines)
    whole = len(lines)
    page.evaluate(f"{find}.tBodies[0].rows[0].hidden = true")
    assert len(page.evaluate(f"quantHarnessMarkdown({find})").splitlines()) == whole - 1
    buttons = page.evaluate("document.querySelectorAll('main .scroll + button.copy, main table + button.copy').length")
    assert buttons == page.evaluate("document.querySelectorAll('main table').length") > 20
    button = f"{find}.closest('.scroll').nextElementSibling"
    page.call("Runtime.evaluate", expression=f"{button}.click()", userGesture=True)
    page.wait("[...document.querySelectorAll('button.copy')].some(b => b.textContent === 'Copied')", 10)
