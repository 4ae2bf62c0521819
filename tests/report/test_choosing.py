"""The reader's limits in a real browser: what they change is what Python computes, the address carries them, and hands and eyes
of every kind can use them. Skipped where no Chromium is installed."""

from __future__ import annotations

import dataclasses
import html.parser
import importlib.util
import json
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from harness import store
from harness.decide import Limits, decide
from harness.report import render_view
from harness.report.answer import Offer, answers, offer
from harness.report.charts import payload
from harness.report.standing import cost_columns, quality_columns, standings
from harness.report.view import View, view
from tests.report import browser, synthetic

PROGRAM = browser.find()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason=browser.LACKING)

GB, MB = 1e9, 1e6
ANSWER = "document.getElementById('answer').innerText.replace(/\\s+/g, ' ').trim()"
NOTE = "document.getElementById('decision-note').textContent"
ROWS = "[...document.querySelectorAll('#decision tbody .label')].map(n => n.textContent)"


@pytest.fixture(scope="module")
def html_file(shown: View, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_bytes(render_view(shown))
    return path


@pytest.fixture(scope="module")
def offered(shown: View) -> Offer:
    return offer(shown)


@pytest.fixture(scope="module")
def tab() -> Iterator[browser.Page]:
    assert PROGRAM is not None
    with browser.page(PROGRAM) as opened:
        yield opened


@pytest.fixture
def page(tab: browser.Page, html_file: Path) -> browser.Page:
    tab.open(html_file)
    return tab


class Text(html.parser.HTMLParser):
    def __init__(self, markup: str) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.feed(markup)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in {"p", "div"}:
            self.parts.append(" ")

    def handle_data(self, data: str) -> None:
        self.parts.append(data)


def said(shown: View, offered: Offer, limits: Limits) -> str:
    """What Python answers, as the text of the page."""
    under = dataclasses.replace(offered, limits=limits, decision=decide(offered.candidates, limits))
    return re.sub(r"\s+", " ", "".join(Text("".join(answers(shown, under))).parts)).strip()


def enter(page: browser.Page, **values: str | float) -> None:
    """Types into boxes and chooses in menus, as a reader does."""
    for name, value in values.items():
        page.evaluate(
            f"(() => {{ const n = document.getElementById({json.dumps(name.replace('_', '-'))});"
            f" n.value = {json.dumps(str(value))};"
            " n.dispatchEvent(new Event('input', {bubbles: true})); n.dispatchEvent(new Event('change', {bubbles: true})); })()"
        )


def leave_out(page: browser.Page, name: str, *values: str) -> None:
    for value in values:
        page.evaluate(f"document.querySelector('#filter-{name} input[value=\"{value}\"]').click()")


# ---------------------------------------------------------------------- the same answer as Python's


def test_the_page_opens_with_the_answer_that_python_gives(page: browser.Page, shown: View, offered: Offer) -> None:
    text = page.evaluate(ANSWER)
    assert text == said(shown, offered, offered.limits)
    assert re.search(r"[MGk]B less than the baseline", text), "a gain in bytes stands in the sentence of the loss"
    assert re.search(r"decodes [\d.]+x as fast, [\d.]+x the memory", text)
    assert "What would change it" in text
    assert "Artifact" in text
    assert "Calibrated on" in text


CHOICES: list[tuple[dict[str, str | float], dict[str, Any]]] = [
    ({"max-loss": 0.25}, {"max_loss": 0.25}),
    ({"max-loss": 3, "confidence": 0.8}, {"max_loss": 3.0, "confidence": 0.8}),
    ({"max-loss": 3, "confidence": 0.99, "prefer": "speed"}, {"max_loss": 3.0, "confidence": 0.99, "prefer": "speed"}),
    ({"max-loss": "", "prefer": "quality"}, {"max_loss": None, "prefer": "quality"}),
    ({"loss": "kl", "max-loss": 0.05}, {"loss": "kl", "max_loss": 0.05}),
    ({"loss": "recovery", "max-loss": 2}, {"loss": "recovery", "max_loss": 2.0}),
    ({"max-size": 10 / 1000}, {"max_size": 10.0 * MB}),
    ({"max-memory": 40 / 1000}, {"max_memory": 40.0 * MB}),
    ({"max-memory": 40 / 1000, "context": 4096, "batch": 4}, {"max_memory": 40.0 * MB, "context": 4096, "batch": 4}),
    ({"max-tpot": 3.5, "max-ttft": 60}, {"max_tpot": 3.5 * 1e-3, "max_ttft": 60 * 1e-3}),
    ({"max-size": 1 / 1000}, {"max_size": 1.0 * MB}),
]


def test_each_control_changes_the_answer_to_what_python_computes(page: browser.Page, shown: View, offered: Offer) -> None:
    seen = set()
    for typed, meant in CHOICES:
        page.evaluate("document.getElementById('reset').click()")
        enter(page, **{name.replace("-", "_"): value for name, value in typed.items()})
        text = page.evaluate(ANSWER)
        assert text == said(shown, offered, dataclasses.replace(offered.limits, **meant)), typed
        seen.add(text)
    assert len(seen) > 5, "the controls do change the answer"
    assert page.errors == []


@pytest.mark.slow
def test_left_out_methods_and_bits_are_not_recommended_and_not_drawn(page: browser.Page, shown: View, offered: Offer) -> None:
    leave_out(page, "method", "gptq")
    leave_out(page, "bits", "8")
    kept = tuple(m for m in shown.methods if m != "gptq")
    bits = tuple(b for b in dict.fromkeys(sorted((c.cell.bits for c in shown.cells), reverse=True)) if b != 8)
    assert page.evaluate(ANSWER) == said(shown, offered, dataclasses.replace(offered.limits, methods=kept, bits=bits))
    drawn = page.evaluate("document.getElementById('pareto-plot').data.flatMap(t => t.customdata || [])")
    left = {c.id for c in shown.cells if c.cell.method == "gptq" or c.cell.bits == 8}
    assert drawn
    assert not left & set(drawn)


@pytest.mark.slow
def test_the_script_finds_the_standings_that_python_finds_on_any_axes_and_of_any_selection(
    page: browser.Page, shown: View
) -> None:
    numbers = {c.key: i for i, c in enumerate(payload(shown).columns)}
    for cells in (list(shown.cells), [c for c in shown.cells if c.cell.bits < 16], list(shown.cells)[::2]):
        for cost in cost_columns(shown)[:6]:
            for quality in quality_columns(shown)[:6]:
                script = (
                    f"[...QuantChart.standings({json.dumps([c.id for c in cells])}.map(i => QuantChart.cellOf.get(i)),"
                    f" {numbers[cost.key]}, {numbers[quality.key]})].map(([id, s]) =>"
                    " [id, s.status, s.rivals.map(r => r.id), s.ties.map(r => r.id)])"
                )
                found = {id_: rest for id_, *rest in page.evaluate(script)}
                wanted = standings(shown, cells, cost, quality)
                assert found == {i: [s.status, list(s.rivals), list(s.ties)] for i, s in wanted.items()}, (cost.key, quality.key)


# ---------------------------------------------------------------------- words that stand under the rows


@pytest.mark.slow
def test_what_is_said_of_the_rows_is_true_of_those_that_stand_there(page: browser.Page) -> None:
    assert "cheaper one on the frontier" in page.evaluate(NOTE) or "better than the next" in page.evaluate(NOTE)
    pick = page.evaluate("document.querySelector('#answer .pick').textContent")
    rows = page.evaluate(ROWS)
    assert pick in rows
    assert "bf16" in rows
    # what ties is merged into the cheapest of those it ties with: at 8 and 16 bits nothing here is better than the smallest
    leave_out(page, "bits", "4", "3", "2", "32")
    assert "there is nothing to choose between" in page.evaluate(NOTE)
    assert any("Costs more and is not better beyond the noise" in t for t in page.evaluate(WORDS))
    page.evaluate("document.getElementById('reset').click()")
    enter(page, max_memory=0.000001)
    assert page.evaluate(ROWS) == ["bf16"]
    assert page.evaluate(NOTE).startswith("No cell of the frontier stands here")
    assert page.evaluate("document.querySelector('#answer .pick').textContent") == "Nothing qualifies"
    page.evaluate("document.getElementById('reset').click()")


WORDS = "[...document.querySelectorAll('#decision td.words')].map(n => n.textContent)"


def test_a_limit_in_the_table_is_the_one_that_the_sentence_beside_it_says(page: browser.Page) -> None:
    page.evaluate("document.getElementById('reset').click()")
    rows = page.evaluate(
        "[...document.querySelectorAll('#decision tbody tr')].map((row) => [2, 6].map((at) => row.children[at].textContent))"
    )
    said = [
        (re.search(r"\u2264 \u2212?([\d.]+)", loss), re.search(r"a loss of at most ([\d.]+) point", words))
        for loss, words in rows
    ]
    both = [(limit[1], sentence[1]) for limit, sentence in said if limit and sentence]
    assert both
    assert all(float(limit) == float(sentence) for limit, sentence in both), both


@pytest.mark.slow
def test_cells_far_below_what_is_allowed_are_folded_away_with_their_count(page: browser.Page) -> None:
    fold = page.evaluate("document.querySelector('#decision-more summary').textContent")
    count = int(fold.split()[0])
    assert "more than 3 times what is allowed" in fold
    listed = page.evaluate(
        "[...document.querySelector('#decision-more details').querySelectorAll('li b')].map(n => n.textContent)"
    )
    assert len(listed) == count > 0
    assert not set(listed) & set(page.evaluate(ROWS))
    everything = page.evaluate("document.querySelectorAll('#decision tbody tr, #decision-more li').length")
    assert everything == 22, "every cell is in the table or behind a fold, with the reason"


# ---------------------------------------------------------------------- the address


@pytest.mark.slow
def test_a_link_shows_what_its_sender_saw(tab: browser.Page, html_file: Path) -> None:
    tab.open(html_file)
    enter(tab, max_loss=2.5, confidence=0.9, max_memory=0.05, context=2048, prefer="speed")
    tab.choose("pareto-range", "near")
    tab.choose(
        "pareto-quality",
        tab.evaluate("[...document.getElementById('pareto-quality').options].find(o => o.text.startsWith('KL')).value"),
    )
    leave_out(tab, "method", "hqq")
    tab.evaluate("document.querySelector('#decision .cell-button').click()")
    tab.evaluate("new Promise(done => setTimeout(done, 400))")
    state = (
        "[...document.querySelectorAll('#pareto select, #pareto input')].map(n => n.type === 'checkbox' ? n.checked : n.value)"
    )
    panel = "[...document.querySelectorAll('#panel h3, #panel p, #panel dd, #panel td')].map(n => n.textContent)"
    before = [tab.evaluate(s) for s in (state, ANSWER, ROWS, panel)]
    fragment = tab.evaluate("location.hash.slice(1)")
    assert "max-loss=2.5" in fragment
    tab.open(html_file, fragment=fragment)
    assert [tab.evaluate(s) for s in (state, ANSWER, ROWS, panel)] == before
    assert len(before[3]) > 20
    tab.evaluate("location.hash = '#max-loss=0.5'")
    tab.wait("document.getElementById('max-loss').value === '0.5' && document.getElementById('prefer').value === 'size'")
    tab.evaluate("document.querySelector('nav .links a').click()")
    assert tab.evaluate("location.hash") == "#max-loss=0.5", "moving about in the page keeps the limits in the address"


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "javascript:alert(1)",
    "__proto__",
    "constructor",
    "1e999",
    "-5",
    "NaN",
    "\u202e\u202d1",
    "%00%ff%",
    "c1 <b>",
    "9" * 10_000,
]


def test_nothing_that_an_address_says_is_markup_or_breaks_the_page(tab: browser.Page, html_file: Path) -> None:
    tab.open(html_file)
    normal = tab.evaluate(ANSWER)
    elements = "document.querySelectorAll('script, img, iframe, svg script, [onerror], [onload], [onclick]').length"
    there = tab.evaluate(elements)
    tab.errors.clear()
    names = (
        "max-memory",
        "max-loss",
        "context",
        "loss",
        "confidence",
        "pareto-quality",
        "pareto-cost",
        "cell",
        "without-bits",
        "x",
    )
    for text in HOSTILE:
        fragment = "&".join(f"{name}={quote(text)}" for name in names)
        tab.evaluate(f"location.hash = {json.dumps('#' + fragment)}")
        tab.evaluate("new Promise(done => setTimeout(done, 60))")
        assert tab.evaluate(ANSWER) == normal, text
        assert tab.evaluate(elements) == there
    tab.open(html_file, fragment="&".join(f"{name}={text}" for name in names for text in HOSTILE[:3]))
    assert tab.evaluate(ANSWER) == normal
    assert tab.errors == []


# ---------------------------------------------------------------------- hands: keyboard, mouse, finger


def test_the_keyboard_walks_the_points_and_each_is_said(page: browser.Page) -> None:
    page.evaluate("document.getElementById('pareto-frame').focus()")
    heard = []
    for key in ("ArrowRight", "ArrowRight", "ArrowUp", "ArrowLeft"):
        page.press(key)
        heard.append(page.evaluate("document.getElementById('live').textContent"))
    assert len(set(heard)) >= 3
    assert all(re.search(r"Mean accuracy .*Bits per weight.*\d+ of 20\.", h) for h in heard)
    assert page.evaluate("document.querySelectorAll('#pareto-plot .hoverlayer .hovertext').length") == 1
    page.press("Enter")
    label = heard[-1].split(":")[0].split(",")[0]
    text = page.evaluate("document.getElementById('panel').innerText")
    assert label in text
    assert page.evaluate("document.activeElement.id") == "panel"
    for command in ("quant-harness run quick.yaml", "quant-harness run quick.yaml --fresh", "quant-harness export "):
        assert command in text


@pytest.mark.slow
def test_charts_and_tables_are_one_stop_each_for_the_tab_key(page: browser.Page) -> None:
    stops = (
        "(root => [...root.querySelectorAll('a, button, input, select, summary, [tabindex]')]"
        ".filter(n => n.tabIndex >= 0 && n.offsetParent !== null).length)"
    )
    assert page.evaluate(f"{stops}(document.getElementById('pareto-frame'))") == 0
    for table in ("#decision", "#table .scroll", "#tasks .scroll"):
        assert page.evaluate(f"document.querySelector('{table}').tabIndex") == 0
        assert page.evaluate(f"{stops}(document.querySelector('{table}'))") == 0, table
    page.evaluate("document.querySelector('#table .scroll').focus()")
    page.press("ArrowRight", "ArrowRight")
    assert page.evaluate("document.activeElement.closest('th').innerText.trim()"), "arrows reach what sorts"
    page.press("Enter")
    assert page.evaluate("document.querySelectorAll('#cells th[aria-sort]').length") <= 1


@pytest.mark.slow
def test_a_point_tells_about_itself_under_the_mouse_and_all_when_it_is_clicked(page: browser.Page) -> None:
    page.evaluate("document.getElementById('pareto-plot').scrollIntoView({block: 'center', behavior: 'instant'})")
    x, y = page.evaluate(
        "(b => [b.x + b.width / 2, b.y + b.height / 2])"
        "([...document.querySelectorAll('#pareto-plot .points path.point')].pop().getBoundingClientRect())"
    )
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=x - 1, y=y)
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    page.wait("document.querySelectorAll('#pareto-plot .hoverlayer .hovertext').length === 1", seconds=10)
    for kind, held in (("mousePressed", 1), ("mouseReleased", 0)):
        page.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=held, clickCount=1)
    page.wait("!document.getElementById('panel').hidden", seconds=10)


@pytest.mark.slow
def test_a_finger_on_the_chart_scrolls_the_page(tab: browser.Page, html_file: Path) -> None:
    tab.call("Emulation.setTouchEmulationEnabled", enabled=True, maxTouchPoints=1)
    try:
        tab.open(html_file, width=360, height=740)
        tab.evaluate("document.documentElement.style.scrollBehavior = 'auto'")
        tab.evaluate("document.getElementById('pareto-plot').scrollIntoView({block: 'center'})")
        before = tab.evaluate("scrollY")
        tab.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": 180, "y": 500}])
        for y in range(480, 200, -20):
            tab.call("Input.dispatchTouchEvent", type="touchMove", touchPoints=[{"x": 180, "y": y}])
        tab.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
        tab.wait(f"scrollY > {before + 100}", seconds=10)
    finally:
        tab.call("Emulation.setTouchEmulationEnabled", enabled=False)


# ---------------------------------------------------------------------- eyes: narrow, dark, on paper, read aloud


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 768, 1400])
def test_no_column_is_cut_and_a_phone_has_the_answer_on_its_first_screen(tab: browser.Page, html_file: Path, width: int) -> None:
    tab.open(html_file, width=width, height=740)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate("(d => d.scrollWidth <= d.clientWidth)(document.getElementById('decision'))")
    bottom = tab.evaluate("document.querySelectorAll('#answer p')[1].getBoundingClientRect().bottom")
    assert bottom <= 740, "what to deploy, what it costs and loses"


CONTRAST = (Path(__file__).parent / "contrast.js").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
def test_every_text_stands_out_from_what_is_behind_it(tab: browser.Page, html_file: Path, dark: bool) -> None:
    tab.open(html_file, dark=dark)
    tab.evaluate("document.querySelector('#decision .cell-button').click()")
    tab.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    seen, bad = tab.evaluate(CONTRAST)
    assert seen > 300
    assert bad == []


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("axe_core_python") is None, reason='axe is not installed: pip install -e ".[dev]"')
@pytest.mark.parametrize(("width", "dark"), [(1400, False), (360, True)])
def test_axe_finds_nothing_serious(tab: browser.Page, html_file: Path, width: int, dark: bool) -> None:
    tab.open(html_file, width=width, dark=dark)
    tab.evaluate("document.querySelector('#decision .cell-button').click()")
    tab.evaluate((resources.files("axe_core_python") / "axe.min.js").read_text(encoding="utf-8") + "; 0")
    found = tab.evaluate(
        "axe.run(document, {resultTypes: ['violations']}).then(r => r.violations"
        ".filter(v => ['serious', 'critical'].includes(v.impact))"
        ".map(v => [v.id, v.nodes.length, v.nodes[0].html.slice(0, 160)]))"
    )
    assert found == []


@pytest.mark.slow
def test_on_paper_there_are_the_answer_the_chart_and_whole_tables(tab: browser.Page, html_file: Path) -> None:
    tab.open(html_file, width=794, height=1123, dark=True)
    tab.call("Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    try:
        seen = "(s => { const n = document.querySelector(s); return n !== null && n.getClientRects().length > 0; })"
        for there in ("#answer .pick", "#pareto-plot", "#decision table", "#decision-note"):
            assert tab.evaluate(f"{seen}('{there}')"), there
        for control in ("nav", "#limits", ".controls"):
            assert not tab.evaluate(f"{seen}('{control}')"), control
        assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert tab.evaluate(CONTRAST)[1] == [], "ink on paper, whatever the screen's colours are"
        assert tab.evaluate("(d => d.scrollWidth <= d.clientWidth)(document.getElementById('decision'))")
    finally:
        tab.call("Emulation.setEmulatedMedia", media="")


# ---------------------------------------------------------------------- several models


@pytest.mark.slow
def test_several_models_are_answered_each_and_drawn_side_by_side(tab: browser.Page, tmp_path: Path) -> None:
    two = view(store.read(synthetic.write(tmp_path, models=("one", "two"), small=True)))
    path = tmp_path / "two.html"
    path.write_bytes(render_view(two))
    tab.open(path)
    offered = offer(two)
    assert tab.evaluate(ANSWER) == said(two, offered, offered.limits)
    assert tab.evaluate("[...document.querySelectorAll('#answer .of')].map(n => n.textContent)") == ["one", "two"]
    tab.choose("pareto-model", "1")
    tab.wait("document.getElementById('pareto-plot').data.some(t => (t.customdata || []).length)")
    drawn = set(tab.evaluate("document.getElementById('pareto-plot').data.flatMap(t => t.customdata || [])"))
    assert drawn <= {c.id for c in two.cells if c.model == "two"}
    tab.choose("pareto-model", "all")
    tab.wait("document.querySelectorAll('#pareto-plot .subplot').length === 2")
    titles = tab.evaluate("[...document.querySelectorAll('#pareto-plot .annotation-text')].map(n => n.textContent)")
    assert {"one", "two"} <= set(titles)
    boxes = tab.evaluate(
        "[...document.querySelectorAll('#pareto-plot .bglayer .bg')].map(b => b.getBoundingClientRect().toJSON())"
    )
    assert all(b["width"] > 100 and b["height"] > 100 for b in boxes)
    assert tab.errors == []
