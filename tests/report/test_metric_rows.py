"""A metric's row is all there is to know of it: no list of names in the report, and each field does what it says."""

from __future__ import annotations

import ast
import dataclasses
import io
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from harness import report, store
from harness.metrics import GROUPS, METRICS
from harness.metrics.group import Group
from harness.probes import PROBES, fake
from harness.report import View, render_view, terminal_table, view
from harness.report.cells import Column
from harness.report.charts import payload
from harness.report.derived import DERIVED
from harness.report.frame import EXPORTS
from harness.report.numbers import MINUS, THIN
from harness.report.standing import cost_columns, headline_axes, quality_columns, standings
from harness.spec import Answer, Axis, Better, Failure, Measurement, Metric, Places, PlannedCellRecord, Question, Record, digest
from tests.report import synthetic
from tests.report.test_report import Parsed

REPORT = Path(report.__path__[0])
LABELS = ("bf16", "rtn 8-bit g64", "rtn 4-bit g64", "inc 4-bit g64")
PROBES_ASKED = ("size", "perplexity")
TASK = "reference_facts"
ROW = Metric(name="stars", title="Stars of the night", unit="B", better="lower", definition="counted", description="How many.")


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> store.Run:
    """Four cells with their sizes, perplexities and one task; the last is simulated."""
    run = store.read(synthetic.write(tmp_path_factory.mktemp("few"), small=True))
    cells = tuple(
        dataclasses.replace(c, questions=tuple(q for q in c.questions if q.probe in PROBES_ASKED or q.subject == TASK))
        for c in run.plan.cells
        if c.cell.label in LABELS
    )
    kept = tuple(
        r for r in run.records if r.cell.label in LABELS and (r.question.probe in PROBES_ASKED or r.question.subject == TASK)
    )
    return dataclasses.replace(run, plan=dataclasses.replace(run.plan, cells=cells), records=kept)


BY_BITS = dict(zip(LABELS, (1.0, 2.0, 3.0, 4.0), strict=True))
"""Values that rise as the bits fall."""


def measured(
    run: store.Run,
    *rows: Metric,
    values: Mapping[str, float] = BY_BITS,
    blobs: Mapping[str, str] | None = None,
    subjects: Iterable[str] = ("",),
    fails: str = "",
) -> View:
    """The view of the run after the fake probe, with these rows, measured every cell but the one of the label `fails`."""
    questions = [Question(probe="fake", subject=subject) for subject in subjects]
    cells = tuple(dataclasses.replace(c, questions=(*c.questions, *questions)) for c in run.plan.cells)
    first = {r.cell.label: r for r in run.records}
    records = [answer(first[label], q, rows, values, blobs, fails) for label in LABELS for q in questions]
    probes: dict[str, Group] = {**GROUPS, "fake": Group(title=fake.PROBE.title, metrics=rows)}
    return view(
        dataclasses.replace(run, plan=dataclasses.replace(run.plan, cells=cells), records=(*run.records, *records)), probes
    )


def answer(
    record: Record,
    question: Question,
    rows: tuple[Metric, ...],
    values: Mapping[str, float],
    blobs: Mapping[str, str] | None,
    fails: str,
) -> Record:
    label = record.cell.label
    value = values[label]
    samples = tuple(
        Measurement(
            metric=row.name,
            value=value,
            low=value - 0.1,
            high=value + 0.1,
            n=7,
            unit=row.unit,
            definition=row.definition,
            blob=None if blobs is None else blobs[label],
        )
        for row in rows
    )
    failed = label == fails
    return dataclasses.replace(
        record,
        key=digest([label, question]),
        question=question,
        answer=None if failed else Answer(measurements=samples),
        failure=Failure(kind="crash", phase="measure", message="it fell over") if failed else None,
    )


def options(shown: View, menu: str) -> list[str]:
    """The texts of a menu of the page."""
    page = render_view(shown).decode()
    body = page[page.index(f'id="{menu}"') :]
    return [part.split("<")[0] for part in body[: body.index("</select>")].split('">')[1:] if "</option>" in part]


def heads(shown: View) -> list[str]:
    """The titles of the columns of numbers that the table of all cells shows first."""
    page = render_view(shown).decode()
    return re.findall(r'<th scope="col" class="num g-headline"[^>]*><button[^>]*><span>([^<]+)</span>', page)


def texts(shown: View) -> dict[str, str]:
    """What the page says of the fake metric, by label."""
    data = payload(shown)
    (place,) = [i for i, c in enumerate(data.columns) if c.metric == "stars"]
    return {cell.label: cell.t[place] for cell in data.cells}


def titles(shown: View) -> tuple[list[str], list[str]]:
    return [c.title for c in quality_columns(shown)], [c.title for c in cost_columns(shown)]


def column(shown: View, name: str, subject: str | None = None) -> Column:
    column = shown.column(name, subject)
    assert column is not None, f"no column {name} {subject}"
    return column


def terminal(shown: View) -> str:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(terminal_table(shown))
    return console.export_text()


# ---------------------------------------------------------------------- no names


@pytest.mark.parametrize("path", sorted(p for p in REPORT.glob("*.py") if p.name != "derived.py"), ids=lambda p: p.name)
def test_the_report_holds_no_name_of_a_metric(path: Path) -> None:
    names = {*METRICS, *DERIVED}
    texts = {n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    assert not texts & names
    assert not {text for text in texts if text.endswith("_") and any(name.startswith(text) for name in names)}


def test_the_search_for_names_sees_one_that_is_there() -> None:
    texts = {n.value for n in ast.walk(ast.parse((REPORT / "derived.py").read_text())) if isinstance(n, ast.Constant)}
    assert set(DERIVED) - texts == {"ln_ppl_ratio"}, "this one is a row of the divergence probe"


def test_a_new_row_of_a_probe_is_everywhere_without_another_edit(few: store.Run) -> None:
    shown = measured(few, dataclasses.replace(ROW, axis="cost"))
    page = Parsed(render_view(shown))
    (drawn,) = [c for c in payload(shown).columns if c.metric == "stars"]
    assert (drawn.name, drawn.group) == (ROW.title, "fake"), "a column of the table that the script makes"
    assert drawn.definition.startswith("counted")
    assert ROW.title in options(shown, "pareto-cost")
    glossary = page.text[page.text.index("What the numbers mean") :]
    assert f"{ROW.title} stars How many. B · lower is better counted" in glossary
    rows = json.loads(EXPORTS["json"](shown))
    assert [(r["value"], r["low"], r["n"]) for r in rows if r["metric"] == "stars"] == [
        (BY_BITS[label], BY_BITS[label] - 0.1, 7) for label in LABELS
    ]
    assert EXPORTS["csv"](shown).decode().count(",stars,") == len(LABELS)


# ---------------------------------------------------------------------- rows agree with each other


@pytest.mark.parametrize("place", [field.name for field in dataclasses.fields(Places)])
def test_two_metrics_share_a_place_only_where_one_stands_in_for_the_other(place: str) -> None:
    groups: dict[tuple[str, int], list[Metric]] = {}
    for row in {**METRICS, **DERIVED}.values():
        number = getattr(row.places, place)
        if number is not None:
            groups.setdefault((str(row.axis) if place == "axis" else "", number), []).append(row)
    assert groups, "some metric is there"
    for shared in (rows for rows in groups.values() if len(rows) > 1):
        assert place == "terminal", [row.name for row in shared]
        assert len({row.short for row in shared}) == 1, "they share a heading"
        assert len({row.places.axis for row in shared} - {None}) == len(shared), "it is said which comes first"


def test_a_floor_is_a_metric_and_rows_that_contradict_themselves_are_refused() -> None:
    assert {row.floor for row in METRICS.values()} - {""} <= set(METRICS)
    with pytest.raises(ValueError, match="'stars': an axis needs a better direction"):
        dataclasses.replace(ROW, better="neither", axis="quality")
    with pytest.raises(ValueError, match="'stars': has a place on an axis, and no axis"):
        dataclasses.replace(ROW, places=Places(axis=1))


def test_memory_and_latency_alone_are_not_shown_of_simulated_cells() -> None:
    assert {name for name, probe in PROBES.items() if not probe.simulated} == {"memory", "latency", "kv_memory"}
    for probe in PROBES.values():
        assert {m.when_simulated for m in probe.metrics} == {probe.simulated}, "no probe is half shown"


def test_what_a_server_takes_is_a_cost_and_no_quality() -> None:
    assert {m.name for m in PROBES["serving"].metrics if m.axis != "cost"} == {"served_failed"}


def test_only_what_can_be_negative_is_written_with_a_sign() -> None:
    signed = {row.name for row in {**METRICS, **DERIVED}.values() if row.signed}
    assert "delta_p_mean" in signed
    assert not {name for name in signed if name.endswith("_rms")}
    assert {row.name for row in {**METRICS, **DERIVED}.values() if row.unit == "points"} - signed == {"minimum_detectable_effect"}


# ---------------------------------------------------------------------- what each field does


def test_a_metric_is_an_axis_on_the_side_that_its_row_says(few: store.Run) -> None:
    expected: dict[Axis | None, tuple[bool, bool]] = {None: (False, False), "quality": (True, False), "cost": (False, True)}
    for axis, sides in expected.items():
        qualities, costs = titles(measured(few, dataclasses.replace(ROW, axis=axis)))
        assert (ROW.title in qualities, ROW.title in costs) == sides


def test_the_lowest_place_on_an_axis_comes_first_and_leads_the_report(few: store.Run) -> None:
    last = measured(few, dataclasses.replace(ROW, axis="cost"))
    assert titles(last)[1][-1] == ROW.title
    first = measured(few, dataclasses.replace(ROW, axis="cost", places=Places(axis=0)))
    assert titles(first)[1][0] == ROW.title
    axes = headline_axes(first)
    assert axes is not None
    assert axes[0].metric.name == "stars"


def test_the_direction_decides_who_is_on_the_frontier(few: store.Run) -> None:
    expected: dict[Better, str] = {"lower": "bf16", "higher": "inc 4-bit g64"}
    for better, best in expected.items():
        shown = measured(few, dataclasses.replace(ROW, axis="cost", better=better, places=Places(axis=0)))
        data = payload(shown)
        assert data.columns[data.cost[0]].better == better
        stands = standings(shown, shown.cells, cost_columns(shown)[0], quality_columns(shown)[0])
        assert best in {cell.label for cell in shown.cells if cell.id in stands and stands[cell.id].status == "frontier"}


def test_a_logarithmic_scale_reaches_the_chart(few: store.Run) -> None:
    for scale in ("linear", "log"):
        data = payload(measured(few, dataclasses.replace(ROW, axis="cost", scale=scale)))
        assert [c.scale for c in data.columns if c.name == ROW.title] == [scale]


def test_the_unit_decides_how_numbers_are_written(few: store.Run) -> None:
    for unit, written in (("B", "3 B (3 to 3)"), ("share", f"300.0{THIN}% (290.0 to 310.0)"), ("s", "3.000 s (2.900 to 3.100)")):
        assert texts(measured(few, dataclasses.replace(ROW, unit=unit)))["rtn 4-bit g64"] == written


def test_what_has_a_place_in_the_headline_is_shown_first_in_its_order(few: store.Run) -> None:
    assert ROW.title not in heads(measured(few, ROW))
    assert heads(measured(few, dataclasses.replace(ROW, places=Places(headline=0))))[0] == ROW.title


@pytest.mark.parametrize(("axis", "columns"), [("cost", 1), ("quality", 2)])
def test_of_a_cost_the_headline_shows_the_first_subject_and_of_a_quality_all(few: store.Run, axis: Axis, columns: int) -> None:
    row = dataclasses.replace(ROW, axis=axis, places=Places(headline=0))
    assert heads(measured(few, row, subjects=("pp1", "pp2"))).count(ROW.title) == columns


def test_what_has_a_place_in_the_ladder_is_drawn_by_bits(few: store.Run) -> None:
    for ladder, there in ((None, False), (0, True)):
        shown = measured(few, dataclasses.replace(ROW, places=Places(ladder=ladder)))
        assert (ROW.title in options(shown, "ladder-left")) is there
        assert (options(shown, "ladder-left")[0] == ROW.title) is there


def test_the_terminal_shows_what_has_a_place_there_under_its_short_heading(few: store.Run) -> None:
    assert "night" not in terminal(measured(few, ROW))
    assert ROW.title in terminal(measured(few, dataclasses.replace(ROW, places=Places(terminal=1))))
    drawn = terminal(measured(few, dataclasses.replace(ROW, short="lights", places=Places(terminal=1))))
    assert "lights" in drawn
    assert ROW.title not in drawn


def test_metrics_at_one_place_stand_in_for_each_other_in_the_order_of_their_axis(few: store.Run) -> None:
    second = dataclasses.replace(ROW, axis="cost", short="second", places=Places(axis=902, terminal=900))
    first = dataclasses.replace(second, name="suns", short="first", places=Places(axis=901, terminal=900))
    both = terminal(measured(few, second, first))
    assert "first" in both
    assert "second" not in both
    assert "second" in terminal(measured(few, second))


def test_a_change_is_written_with_its_sign(few: store.Run) -> None:
    values = dict(zip(LABELS, (-1.5, -0.5, 0.5, 1.5), strict=True))
    for signed, written in (
        (False, "1.500 nats (1.400 to 1.600)"),
        (True, "+1.500 nats (+1.400 to +1.600; 15.0x its own noise)"),
    ):
        said = texts(measured(few, dataclasses.replace(ROW, unit="nat", signed=signed), values=values))
        assert said["inc 4-bit g64"] == written
        assert said["bf16"].startswith(f"{MINUS}1.500 nats "), "a loss has its sign always"


def test_a_simulated_cell_shows_what_its_rows_allow(few: store.Run) -> None:
    hidden = dataclasses.replace(ROW, name="watts", title="Watts", when_simulated=False)
    shown = measured(few, ROW, hidden)
    cells = {c.label: c for c in shown.cells}
    status = {name: cells["inc 4-bit g64"].values[column(shown, name).key].status for name in ("stars", "watts")}
    assert status == {"stars": "ok", "watts": "simulated"}
    assert cells["rtn 4-bit g64"].values[column(shown, "watts").key].status == "ok"
    page = Parsed(render_view(shown)).text
    assert "withheld" not in page, "the question is answered, as far as it may be"


def test_an_answer_of_which_nothing_may_be_shown_is_withheld_and_no_failure(few: store.Run) -> None:
    hidden = dataclasses.replace(ROW, when_simulated=False)
    for fails in ("", "inc 4-bit g64"):
        page = Parsed(render_view(measured(few, hidden, fails=fails))).text
        assert "1 on memory and speed are withheld, because the weights of one cell are simulated" in page
        assert "4 of 4 cells complete" in page
        assert "Withheld: weights are held dequantized at run time" in page
        assert "it fell over" not in page
    shown = Parsed(render_view(measured(few, ROW, fails="inc 4-bit g64"))).text
    assert "3 of 4 cells complete" in shown
    assert "it fell over" in shown


def test_what_no_row_describes_is_withheld_wherever_its_probe_withholds_anything(few: store.Run) -> None:
    stranger = dataclasses.replace(ROW, name="stranger")
    for allowed, status in ((True, "ok"), (False, "simulated")):
        row = dataclasses.replace(ROW, when_simulated=allowed)
        shown = measured(few, row, stranger)
        probes: dict[str, Group] = {**GROUPS, "fake": Group(title=fake.PROBE.title, metrics=(row,))}
        cells = view(rerun(few, shown), probes)
        simulated = next(c for c in cells.cells if c.simulated)
        assert simulated.values[column(cells, "stranger").key].status == status


def rerun(run: store.Run, shown: View) -> store.Run:
    """The run that a view shows, as stored."""
    cells = tuple(
        PlannedCellRecord(cell=c.cell, baseline=c.baseline, questions=tuple(o.question for o in c.outcomes)) for c in shown.cells
    )
    records = tuple(o.record for c in shown.cells for o in c.outcomes if o.record is not None)
    return dataclasses.replace(run, plan=dataclasses.replace(run.plan, cells=cells), records=records)


def losses(run: store.Run) -> dict[str, str]:
    """Raw samples by cell [windows, tokens]: the baseline's losses, and a tenth more for each step down."""
    base = np.random.default_rng(0).gamma(2.0, 1.0, size=(12, 16))
    blobs = {}
    for label in LABELS:
        buffer = io.BytesIO()
        np.save(buffer, base + (BY_BITS[label] - 1) / 10)
        blobs[label] = store.add_blob(run.path.parent, buffer.getvalue(), "npy")
    return blobs


def items(run: store.Run, right: Mapping[str, int], count: int) -> dict[str, str]:
    """Raw samples by cell: `count` items, of which the first are right."""
    return {
        label: store.add_blob(
            run.path.parent,
            json.dumps({"items": [{"id": str(i), "correct": i < right[label]} for i in range(count)]}).encode(),
            "json",
        )
        for label in LABELS
    }


def test_losses_are_compared_as_the_logarithm_of_a_ratio(few: store.Run) -> None:
    plain = measured(few, ROW, blobs=losses(few), subjects=("text",))
    assert plain.column("ln_ppl_ratio", "text") is None
    assert column(plain, "stars").key not in plain.derived.draws
    shown = measured(few, dataclasses.replace(ROW, samples="losses"), blobs=losses(few), subjects=("text",))
    ratio = column(shown, "ln_ppl_ratio", "text")
    values = {c.label: c.values[ratio.key] for c in shown.cells}
    assert values["bf16"].status == "baseline"
    assert [round(values[label].value, 9) for label in LABELS[1:]] == [0.1, 0.2, 0.3]
    draws = shown.derived.draws[column(shown, "stars").key]
    cells = {c.label: c.id for c in shown.cells}
    assert draws[cells["rtn 8-bit g64"]] == pytest.approx(draws[cells["bf16"]] * np.exp(0.1)), "the same windows are drawn"


def test_samples_by_token_are_resampled_and_compared_with_nothing(few: store.Run) -> None:
    shown = measured(few, dataclasses.replace(ROW, samples="tokens"), blobs=losses(few), subjects=("text",))
    assert shown.column("ln_ppl_ratio", "text") is None
    draws = shown.derived.draws[column(shown, "stars").key]
    cells = {c.label: c.id for c in shown.cells}
    assert draws[cells["rtn 4-bit g64"]] == pytest.approx(draws[cells["bf16"]] + 0.2)


def test_items_are_compared_one_by_one_and_have_a_part_in_the_mean(few: store.Run) -> None:
    blobs = items(few, dict(zip(LABELS, (10, 9, 6, 10), strict=True)), 12)
    plain = measured(few, ROW, blobs=blobs, subjects=("quiz",))
    assert plain.column("accuracy_difference", "quiz") is None
    shown = measured(few, dataclasses.replace(ROW, samples="items"), blobs=blobs, subjects=("quiz",))
    cells = {c.label: c.values for c in shown.cells}
    difference, lost = column(shown, "accuracy_difference", "quiz"), column(shown, "flips_lost", "quiz")
    assert cells["rtn 4-bit g64"][difference.key].value == pytest.approx(-100 * 4 / 12)
    assert cells["rtn 4-bit g64"][lost.key].value == 4
    assert "rtn 4-bit g64, quiz: \u221233.3 points" in render_view(shown).decode(), "it has a column in the map of tasks"
    mean, accuracy = column(shown, "mean_accuracy"), column(shown, "accuracy")
    one = cells["rtn 8-bit g64"]
    assert one[mean.key].value == pytest.approx((one[accuracy.key].value + BY_BITS["rtn 8-bit g64"]) / 2)
    alone = {c.label: c.values for c in plain.cells}["rtn 8-bit g64"]
    assert alone[column(plain, "mean_accuracy").key].value == alone[column(plain, "accuracy").key].value


def test_a_metric_that_more_bits_never_worsen_warns_where_they_do(few: store.Run) -> None:
    broken = {**BY_BITS, "rtn 8-bit g64": 9.0}
    said = "Suspicious: rtn 8-bit g64 has a worse stars of the night than rtn 4-bit g64, which has fewer bits."
    assert said not in Parsed(render_view(measured(few, ROW, values=broken))).text
    monotone = dataclasses.replace(ROW, monotone=True)
    assert said in Parsed(render_view(measured(few, monotone, values=broken))).text
    assert said not in Parsed(render_view(measured(few, monotone))).text
    higher = dataclasses.replace(monotone, better="higher")
    assert said in Parsed(render_view(measured(few, higher))).text, "here the cell with more bits has the lower value"
    assert said not in Parsed(render_view(measured(few, higher, values=broken))).text


def test_cells_inside_the_noise_floor_of_a_metric_are_said_to_be_there(few: store.Run) -> None:
    row = dataclasses.replace(ROW, unit="nat")
    dusk = dataclasses.replace(row, name="dusk", title="Dusk", better="neither")
    values = {"bf16": 2.5, "rtn 8-bit g64": 2.0, "rtn 4-bit g64": 3.0, "inc 4-bit g64": 4.0}
    said = "Indistinguishable from the baseline on sky (divergence inside the noise floor of 2.500 nats): rtn 8-bit g64."
    for floor, told in (("dusk", True), ("", False)):
        shown = measured(few, dataclasses.replace(row, floor=floor), dusk, values=values, subjects=("sky",))
        assert (said in Parsed(render_view(shown)).text) is told


def test_what_a_probe_measures_is_what_the_report_knows_of_it() -> None:
    assert {name: (probe.title, probe.metrics) for name, probe in PROBES.items()} == {
        name: (group.title, group.metrics) for name, group in GROUPS.items()
    }
    assert list(PROBES) == list(GROUPS)
