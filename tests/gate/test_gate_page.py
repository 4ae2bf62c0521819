"""The gate's page: what stands on it, where the first bad run is, and that no name does anything."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from harness.gate import nights, page
from harness.gate.examples import Example
from harness.gate.types import Figure, Finding, GateReport
from harness.report.markup import DIRECTIONS
from tests.gate import reports_by_hand as by_hand
from tests.report import browser, hostile
from tests.report.test_report import Parsed

PROGRAM = browser.find()
GOOD = (0.9642, 0.9639, 0.9641, 0.964)
BAD = (0.942, 0.9415)

TAGS = {"html", "head", "meta", "title", "style", "body", "a", "nav", "div", "span", "main", "section", "h1", "h2", "h3", "p"}
TAGS |= {"ul", "ol", "li", "table", "caption", "thead", "tbody", "tr", "th", "td", "small", "b", "i", "svg", "path", "rect"}
TAGS |= {"line", "text", "g", "code", "pre", "details", "summary"}


def examples(f: Finding) -> Sequence[Example]:
    """Two items with their texts, one by its name."""
    texts: tuple[dict[str, Any], ...] = (
        {"prompt": "On which river does Arden lie?", "right": "Wend", "wrong": ("Tarn", "Orb"), "after": "behind by 0.12 nats"},
    )
    given = [*texts, {"prompt": "…eleven loaves. How many?", "right": "eleven"}, {}]
    return [Example(flip=flip, place=f"item {n}", **parts) for n, (flip, parts) in enumerate(zip(f.flips, given, strict=False))]


def whole(report: GateReport | None = None) -> bytes:
    past = by_hand.history(by_hand.lost_accuracy(), GOOD + BAD) | by_hand.history(
        by_hand.slower(), (0.0021,) * 6, machines="mmnnmm"
    )
    return page.page(report or by_hand.red(), examples, past, machine="m")


@pytest.fixture(scope="module")
def parsed() -> Parsed:
    return Parsed(whole())


def test_the_page_says_the_verdict_then_the_next_step_then_what_is_worse(parsed: Parsed) -> None:
    text = parsed.text
    places = [
        text.index(said) for said in ("squares are worse", "Ask the alarms once more", "What is worse Each", "All squares By")
    ]
    assert places == sorted(places)


def test_each_alarm_has_its_sentence_its_items_its_command_and_the_first_bad_run(parsed: Parsed) -> None:
    text = parsed.text.replace("\u202f", " ")
    report = by_hand.red()
    for said in (
        "96.4 % → 94.1 %, 2.3 points worse (1.4 to 3.2)",
        "On which river does Arden lie?",
        "not Tarn / Orb",
        "behind by 0.12 nats",
        "The first bad run is night 4 of 2026-11-27; since then 3 in a row lie beyond the band.",
        "The first bad run is the candidate itself",
        *report.commands.values(),
    ):
        assert said in text


def test_what_differs_and_every_square_stand_below(parsed: Parsed) -> None:
    assert "package gptqmodel 7.6.0 7.6.1" in parsed.text
    for said in ("Worse: 2", "Failed: 1", "Missing: 1", "Not comparable: 1", "Improved: 1", "New: 1", "Within noise: 6"):
        assert said in parsed.text
    opened = [attributes for tag, attributes in parsed.tags if tag == "details" and "open" in attributes]
    assert len(opened) == 2, "what failed and what is missing is seen at once"


def test_a_green_page_has_no_alarms_and_says_so() -> None:
    seen = Parsed(page.page(by_hand.green()))
    assert "green: nothing that was compared is worse" in seen.text
    assert "What is worse" not in seen.text
    assert "What could not be compared is no pass" in seen.text


def test_the_page_loads_nothing_and_runs_nothing(parsed: Parsed) -> None:
    assert not {tag for tag, _ in parsed.tags} & {"script", "link", "img", "iframe", "form", "input"}
    assert all(
        value is None or value.startswith("#") for _, a in parsed.tags for name, value in a.items() if name in ("href", "src")
    )
    policy = next(a["content"] for tag, a in parsed.tags if tag == "meta" and "http-equiv" in a)
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'")


def test_the_same_report_gives_the_same_bytes() -> None:
    assert whole() == whole()


@pytest.mark.parametrize("start", range(0, len(hostile.STRINGS), 20))
def test_no_string_adds_an_element_a_handler_a_style_or_an_address(start: int) -> None:
    strings = (*hostile.STRINGS, *hostile.STRINGS[:20])[start : start + 20]

    def shown(f: Finding) -> list[Example]:
        texts: dict[str, Any] = {"place": strings[1], "prompt": strings[2], "right": strings[3], "wrong": strings[4:6]}
        return [Example(flip=flip, **texts, before=strings[6], after=strings[7]) for flip in f.flips]

    report = by_hand.hostile(strings)
    past = {
        key: tuple(dataclasses.replace(p, run=strings[8], started_at=strings[9]) for p in nights)
        for f in report.alarms
        for key, nights in by_hand.history(f, GOOD).items()
    }
    written = page.page(report, shown, past)
    seen = Parsed(written)
    assert {tag for tag, _ in seen.tags} <= TAGS
    for _, attributes in seen.tags:
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "style", "srcdoc")]
        assert (attributes.get("href") or "#").startswith("#")
    assert not [mark for mark in DIRECTIONS if chr(mark) in written.decode()]


# ---- the history of a square ----


def drawn(f: Finding, values: tuple[float, ...], machines: str = "", machine: str = "") -> tuple[nights.Night, ...]:
    return nights.nights(f, by_hand.history(f, values, machines=machines), by_hand.CANDIDATE, machine)


def first_bad(f: Finding, values: tuple[float, ...], machines: str = "", machine: str = "") -> str | None:
    found = nights.first_bad(drawn(f, values, machines, machine))
    return None if found is None else found.run


def test_the_first_bad_run_is_the_first_of_those_that_never_came_back() -> None:
    lost = by_hand.lost_accuracy()
    assert first_bad(lost, (*GOOD, *BAD, 0.9642)) == by_hand.CANDIDATE.run, "a bad night that came back is another matter"
    assert first_bad(lost, (0.94, *GOOD, *BAD, 0.9412)) == "night 5"
    assert first_bad(dataclasses.replace(lost, after=Figure(value=0.9635)), GOOD) is None


def test_runs_of_other_machines_are_drawn_and_not_compared() -> None:
    slow = by_hand.slower()
    values = (0.0021, 0.0021, 0.0024, 0.0024, 0.0021)
    assert first_bad(slow, (*values, 0.0024, 0.0024), "mmmmmnm", "m") == "2026-11-28T020000Z-7f3a"
    assert [n.same for n in drawn(slow, values, "mmnnm", "m")] == [True, True, False, False, True, True]
    assert all(n.same for n in drawn(by_hand.lost_accuracy(), GOOD, "mnmn", "m")), "accuracy is the same on every machine"


@pytest.mark.parametrize(
    ("unit", "change_unit", "before", "after", "change", "threshold", "edge"),
    [
        ("share", "points", 0.9, 0.88, 2.0, 0.5, 0.895),
        ("nat", "nat", 0.01, 0.02, 0.01, 0.002, 0.012),
        ("", "nat", 8.0, 8.4, 0.0488, 0.01, 8.080401),
        ("s", "share", 2.0, 2.4, 0.2, 0.1, 2.2),
        ("tokens/s", "share", 100.0, 80.0, 0.25, 0.1, 90.909091),
        ("bit/byte", "nat", 8.0, 8.4, 0.05, 0.01, None),
        ("B", "", 8.0, 9.0, 1.0, 0.0, None),
        ("share", "points", 0.9, 0.9, 0.0, 0.5, None),
        ("share", "points", 0.9, 0.92, -2.0, 0.5, 0.895),
    ],
)
def test_the_band_ends_where_the_change_is_the_threshold(
    unit: str, change_unit: str, before: float, after: float, change: float, threshold: float, edge: float | None
) -> None:
    f = by_hand.lost_accuracy(
        square=by_hand.square(unit=unit), before=Figure(value=before), after=Figure(value=after), change=change,
        change_unit=change_unit, threshold=threshold,
    )  # fmt: skip
    assert nights.edge(f) == (edge if edge is None else pytest.approx(edge, abs=1e-6))


def test_a_square_without_a_past_or_a_number_has_no_drawing() -> None:
    lost = by_hand.lost_accuracy()
    assert nights.nights(lost, {}, by_hand.CANDIDATE) == ()
    assert nights.nights(dataclasses.replace(lost, after=None), by_hand.history(lost, GOOD), by_hand.CANDIDATE) == ()
    assert drawn(lost, (float("nan"), float("inf"))) == ()
    assert page.page(by_hand.red(findings=(lost,)), history=by_hand.history(lost, (0.964,))).count(b'class="rows nights"') == 1


def test_the_drawing_keeps_to_the_newest_runs_and_has_its_table() -> None:
    lost = by_hand.lost_accuracy()
    key, past = next(iter(by_hand.history(lost, GOOD).items()))
    many = {key: tuple(dataclasses.replace(past[0], run=f"night {n}") for n in range(1000))}
    shown = nights.nights(lost, many, by_hand.CANDIDATE)
    assert len(shown) == nights.MOST + 1
    assert shown[0].run == f"night {1000 - nights.MOST}"
    assert nights.drawing(lost, shown).count("<tr>") == len(shown) + 1


# ---- in a real browser ----


@pytest.fixture(scope="module")
def tab() -> Iterator[browser.Page]:
    if PROGRAM is None:
        pytest.skip("no Chromium is installed; add one with: apt-get install chromium")
    with browser.page(PROGRAM) as opened:
        yield opened


def opened(tab: browser.Page, path: Path, content: bytes, *, width: int, dark: bool) -> None:
    path.write_bytes(content)
    tab.requests.clear()
    tab.open(path, width=width, dark=dark, ready="document.readyState === 'complete' && document.querySelector('main') !== null")


PAGES = {
    "red": whole(),
    "green": page.page(by_hand.green()),
    "hostile": page.page(by_hand.hostile(tuple(hostile.STRINGS[3::20]))),
}
CONTRAST = (Path(__file__).parents[1] / "report" / "contrast.js").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1400, 360])
@pytest.mark.parametrize("name", PAGES)
def test_in_a_browser_it_fits_asks_for_nothing_and_can_be_read(
    tab: browser.Page, tmp_path: Path, name: str, width: int, dark: bool
) -> None:
    path = tmp_path / "gate.html"
    opened(tab, path, PAGES[name], width=width, dark=dark)
    assert tab.requests == ["about:blank", path.as_uri()] or tab.requests == [path.as_uri()]
    assert tab.errors == []
    tab.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    seen, bad = tab.evaluate(CONTRAST)
    assert seen > 30
    assert bad == []


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("axe_core_python") is None, reason='axe is not installed: pip install -e ".[dev]"')
@pytest.mark.parametrize(("width", "dark"), [(1400, False), (360, True)])
@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_nothing_at_all(tab: browser.Page, tmp_path: Path, name: str, width: int, dark: bool) -> None:
    opened(tab, tmp_path / "gate.html", PAGES[name], width=width, dark=dark)
    tab.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    tab.evaluate((resources.files("axe_core_python") / "axe.min.js").read_text(encoding="utf-8") + "; 0")
    passed, found = tab.evaluate(
        "axe.run(document).then(r => [r.passes.length, r.violations.map(v => [v.id, v.nodes[0].html.slice(0, 160)])])"
    )
    assert passed > 10, "it has looked"
    assert found == []


@pytest.mark.slow
def test_on_paper_the_alarms_their_history_and_their_commands_are_there(tab: browser.Page, tmp_path: Path) -> None:
    opened(tab, tmp_path / "gate.html", PAGES["red"], width=794, dark=True)
    tab.call("Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    try:
        assert tab.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
        assert tab.evaluate(
            "[...document.querySelectorAll('.alarm svg.nights')].every(s => s.getBoundingClientRect().height > 100)"
        )
        assert tab.evaluate("document.documentElement.scrollWidth") <= 794
        said = tab.evaluate("document.querySelector('#alarms').innerText")
        assert all(command in re.sub(r"\s+", " ", said) for command in by_hand.red().commands.values())
    finally:
        tab.call("Emulation.setEmulatedMedia", media="")
