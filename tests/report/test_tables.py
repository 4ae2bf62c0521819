"""Results for people: what is asked for and nothing else, nearest spellings, tables with intervals, the summary."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness import store
from harness.errors import BadInput
from harness.report.cells import Column, Value
from harness.report.derived import ACCURACY_DIFFERENCE
from harness.report.frame import EXPORTS
from harness.report.markdown import text as in_markdown
from harness.report.section import own_noise
from harness.report.tables import TABLES, Choice, in_latex, select
from harness.report.view import View, view
from tests.report import synthetic


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> View:
    return view(store.read(synthetic.write(tmp_path_factory.mktemp("two"), models=("alpha", "beta"), small=True)))


def drawn(whole: View, format: str, choice: Choice) -> str:
    return TABLES[format](whole, select(whole, choice), choice).decode()


def test_a_choice_keeps_the_cells_and_metrics_that_were_asked_for(whole: View) -> None:
    shown = select(whole, Choice(models=["beta"], methods=["gptq", "awq"], bits=[4, 3], metrics=["perplexity"]))
    assert [c.cell.name for c in shown.cells] == [f"beta / {m} {b}-bit g64" for m in ("gptq", "awq") for b in (4, 3)]
    assert {c.metric.name for c in shown.columns} == {"perplexity"}
    assert shown.models == ("beta",)


def test_values_of_a_choice_are_those_of_the_whole_run(whole: View) -> None:
    rows = EXPORTS["csv"](whole).decode().splitlines()
    part = EXPORTS["csv"](select(whole, Choice(methods=["hqq"]))).decode().splitlines()
    assert part[0] == rows[0]
    assert part[1:] == [row for row in rows[1:] if row.split(",")[1] == "hqq"]


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        (Choice(models=["alpa"]), "did you mean 'alpha'"),
        (Choice(methods=["gtpq"]), "did you mean 'gptq'"),
        (Choice(metrics=["perplexty"]), "did you mean 'perplexity'"),
        (Choice(bits=[5]), "There are: 32, 16, 8, 4, 3, 2"),
        (Choice(methods=["inc"], bits=[8]), "no cell of these results is all of that"),
    ],
)
def test_what_is_not_there_is_answered_with_what_is(whole: View, choice: Choice, says: str) -> None:
    with pytest.raises(BadInput, match=re.escape(says)):
        select(whole, choice)


def test_the_table_has_one_line_for_each_cell_and_says_of_what_its_frontier_is(whole: View) -> None:
    lines = drawn(whole, "table", Choice()).splitlines()
    cells = [line for line in lines if line.startswith(("alpha / ", "beta / "))]
    assert len(cells) == len(whole.cells) == 44
    words = " ".join(lines)
    assert "on the frontier of mean accuracy against bits per weight" in words
    assert "each model by itself" in words


def test_a_metric_that_is_asked_for_is_shown_with_its_interval(whole: View) -> None:
    shown = drawn(whole, "table", Choice(models=["alpha"], metrics=["perplexity"], bits=[4]))
    assert re.search(r"^gptq 4-bit g64 +7\.\d+ \(6\.\d+ to 8\.\d+\)", shown, flags=re.MULTILINE)


def test_markdown_has_a_line_for_each_cell_with_intervals(whole: View) -> None:
    lines = [line for line in drawn(whole, "markdown", Choice()).splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(whole.cells)
    assert len({line.count("|") for line in lines}) == 1
    assert re.search(r"\| beta \| gptq 4-bit g64 \|.*\d+\.\d \(\d+\.\d to \d+\.\d\)", "\n".join(lines))


def test_latex_has_as_many_columns_in_each_line_as_it_declares(whole: View) -> None:
    text = drawn(whole, "latex", Choice())
    declared = re.search(r"\\begin\{tabular\}\{([lrc]+)\}", text)
    assert declared is not None
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 1 + len(whole.cells)
    assert {line.count(" & ") + 1 for line in rows} == {len(declared[1])}


def test_the_summary_is_short_and_says_what_to_deploy_of_each_model(whole: View) -> None:
    text = drawn(whole, "summary", Choice())
    assert text.startswith("### Synthetic numbers")
    assert text.count("**alpha**: ") == text.count("**beta**: ") == 1
    assert len(text.splitlines()) < 45
    assert re.search(r"\d+ of 572 questions have no answer", text)


@pytest.mark.parametrize(
    "hostile", ["<script>alert(1)</script>", "a|b", "[x](javascript:1)", "`rm`", "a\nb", "\x1b[31m", "*b*_c_"]
)
def test_a_name_is_shown_as_it_is_in_markdown(hostile: str) -> None:
    text = in_markdown(hostile)
    assert "<" not in text
    assert "\n" not in text
    assert "\x1b" not in text
    assert not re.search(r"(?<!\\)[|*_`\[\]]", text)


def test_what_tex_would_take_for_a_command_is_escaped() -> None:
    assert in_latex(r"\input{/etc/passwd} $x_1$ 50% a&b #~^") == (
        r"\textbackslash{}input\{/etc/passwd\} \$x\_1\$ 50\% a\&b \#\textasciitilde{}\textasciicircum{}"
    )


def test_hostile_names_of_a_run_stay_names_in_every_format(tmp_path: Path) -> None:
    name = "<img src=x onerror=alert(1)>|\\evil{}\x1b[2J"
    shown = view(store.read(synthetic.write(tmp_path, models=(name,), small=True)))
    for format, write in TABLES.items():
        text = write(shown, shown, Choice()).decode()
        assert "\x1b" not in text
        if format in {"markdown", "summary"}:
            assert "<img" not in text


def test_a_change_says_how_many_times_its_own_noise_it_is(whole: View) -> None:
    choice = Choice(models=["alpha"], metrics=["accuracy_difference"])
    column = next(c for c in whole.columns if c.metric.name == "accuracy_difference")
    cell = next(c for c in whole.cells if c.label == "rtn 2-bit g64")
    value = cell.values[column.key]
    assert value.low is not None
    assert value.high is not None
    times = 2 * abs(value.value) / (value.high - value.low)
    assert times > 1, "two bits lose beyond the noise"
    for format in ("table", "markdown"):
        line = next(line for line in drawn(whole, format, choice).splitlines() if "rtn 2-bit" in line)
        assert f"; {times:.1f}x its own noise)" in line
    assert "its own noise" not in drawn(whole, "markdown", Choice(metrics=["perplexity"])), "a perplexity is no change"


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(-2.0, 2.0, "0.5x its own noise"), (0.5, 1.5, "2.0x its own noise"), (1.0, 1.0, ""), (None, None, "")],
)
def test_the_noise_of_a_change_is_half_the_width_of_its_interval(low: float | None, high: float | None, said: str) -> None:
    column = Column(key="k", metric=ACCURACY_DIFFERENCE, probe="tasks", subject="", derived=True)
    assert own_noise(column, Value(status="ok", value=-1.0 if low == -2.0 else 1.0, low=low, high=high)) == said
