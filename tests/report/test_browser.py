"""The page in a real browser: it opens from disk without asking for anything, draws its points, sorts, explains, follows the
system's colours. Skipped where no Chromium is installed."""

from __future__ import annotations

import base64
import struct
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from harness.report import render_view
from harness.report.view import View
from tests.report import browser

PROGRAM = browser.find()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason=browser.LACKING)


@pytest.fixture(scope="module")
def html(shown: View, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_bytes(render_view(shown))
    return path


@pytest.fixture(scope="module")
def page(html: Path) -> Iterator[browser.Page]:
    assert PROGRAM is not None
    with browser.page(PROGRAM) as opened:
        opened.open(html)
        yield opened


POINTS = "document.querySelectorAll('#{} .scatterlayer .points path').length"
CELLS = "document.getElementById('pareto-plot').data.flatMap(t => t.customdata || []).length"


def test_the_page_asks_for_nothing_but_itself_and_reports_no_error(page: browser.Page, html: Path) -> None:
    page.evaluate("new Promise(done => setTimeout(done, 300))")
    assert page.requests == [html.as_uri()]
    assert page.errors == []


def test_the_page_could_not_send_anything_if_it_tried(html: Path) -> None:
    assert PROGRAM is not None
    with browser.page(PROGRAM) as opened:
        opened.open(html)
        sent = opened.evaluate("fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'refused')")
        assert sent == "refused"
        assert any("Content Security Policy" in e for e in opened.errors)


def test_all_charts_have_points(page: browser.Page) -> None:
    assert page.evaluate(CELLS) == 20, "22 cells; one failed, one lacks a task"
    assert page.evaluate(POINTS.format("pareto-plot")) == 21, "and a ring around what is recommended"
    assert page.evaluate(POINTS.format("ladder-a-plot")) == 18
    assert page.evaluate(POINTS.format("ladder-b-plot")) == 18


def test_every_choice_of_the_menus_draws(page: browser.Page) -> None:
    for menu, plot in (("pareto-quality", "pareto-plot"), ("pareto-cost", "pareto-plot"), ("ladder-left", "ladder-a-plot")):
        choices = page.evaluate(f"[...document.querySelectorAll('#{menu} option')].map(o => o.value)")
        assert len(choices) >= 5
        for choice in choices:
            page.choose(menu, choice)
            assert page.evaluate(POINTS.format(plot)) > 5, f"{menu} {choice}"
        page.choose(menu, choices[0])
    page.choose("pareto-range", "near")
    low, high = page.evaluate("document.getElementById('pareto-plot')._fullLayout.yaxis.range")
    assert 0 < 100 - 10**low < 100 - 10**high < 100, "by what is missing from 100 %: the axis grows downwards"
    assert 100 - 10**low > 80
    page.choose("pareto-range", "all")
    assert page.errors == []


def test_the_answer_is_there_at_once_and_the_newest_chart_follows(page: browser.Page) -> None:
    moved = """(() => {
      const menu = document.getElementById('pareto-cost'), note = document.getElementById('pareto-note');
      const title = () => document.getElementById('pareto-plot').layout.xaxis.title.text, before = [title(), note.textContent];
      for (const option of [...menu.options].slice(1, 4)) {
        menu.value = option.value;
        menu.dispatchEvent(new Event('change', {bubbles: true}));
      }
      return [note.textContent !== before[1], title() === before[0], document.documentElement.dataset.drawing];
    })()"""
    assert page.evaluate(moved) == [True, True, "true"], "words are new, the chart is still the old one"
    page.wait("!document.documentElement.dataset.drawing")
    chosen = page.evaluate("document.getElementById('pareto-cost').selectedOptions[0].textContent.split(',')[0].trim()")
    assert page.evaluate("document.getElementById('pareto-plot').layout.xaxis.title.text").startswith(chosen)
    page.choose("pareto-cost", page.evaluate("document.getElementById('pareto-cost').options[0].value"))


def test_the_table_sorts_by_number_with_missing_ones_last_and_goes_back(page: browser.Page) -> None:
    click = "[...document.querySelectorAll('#cells thead button')].find(b => b.textContent.startsWith('Perplexity')).click()"
    labels = "[...document.querySelectorAll('#cells tbody tr')].map(r => r.querySelector('.label').textContent)"
    before = page.evaluate(labels)
    page.evaluate(click)
    ascending = page.evaluate(labels)
    assert ascending[-2:] == ["rtn 2-bit g64", "awq 2-bit g64"]
    assert page.evaluate("document.querySelector('#cells th[aria-sort]').ariaSort") == "ascending"
    page.evaluate(click)
    descending = page.evaluate(labels)
    assert descending[0] == "rtn 2-bit g64"
    assert descending[-1] == "awq 2-bit g64"
    page.evaluate(click)
    assert page.evaluate(labels) == before


@pytest.mark.parametrize("width", [1400, 768])
def test_a_table_that_goes_on_says_so_and_shows_the_rest(html: Path, width: int) -> None:
    assert PROGRAM is not None
    state = """(() => {
      const region = document.querySelector('#table .scroll'), button = document.getElementById('table-further');
      const first = region.querySelector('tbody th').getBoundingClientRect(), last = region.querySelector('thead th:last-child');
      const frame = region.getBoundingClientRect();
      return [button.hidden ? '' : button.textContent, region.dataset.more || '', Math.round(first.left - frame.left),
        last.getBoundingClientRect().right <= frame.right + 1];
    })()"""
    with browser.page(PROGRAM) as opened:
        opened.open(html, width=width)
        opened.choose("table-group", "all")
        opened.evaluate("document.getElementById('table').scrollIntoView()")
        opened.wait("!document.getElementById('table-further').hidden")
        assert opened.evaluate(state) == ["More columns \u2192", "right", 1, False]
        for _ in range(40):
            if opened.evaluate(state)[3]:
                break
            opened.evaluate("document.getElementById('table-further').click()")
            opened.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done, 50)))")
        assert opened.evaluate(state) == ["\u2190 First columns", "left", 1, True], "the name of the cell stays in sight"
        opened.evaluate("document.getElementById('table-further').click()")
        opened.wait("document.querySelector('#table .scroll').scrollLeft === 0")


def test_the_chart_is_saved_as_it_stands(page: browser.Page, html: Path) -> None:
    page.evaluate(
        "window.saved = []; HTMLAnchorElement.prototype.click = function () { window.saved.push([this.download, this.href]); }"
    )
    for format in ("svg", "png"):
        page.evaluate(f"document.querySelector('[data-picture={format}]').click()")
    page.wait("window.saved.length === 2")
    saved = {name.rpartition(".")[2]: address for name, address in page.evaluate("window.saved")}
    drawing = ElementTree.fromstring(urllib.parse.unquote(saved["svg"].partition(",")[2]))
    words = " ".join(drawing.itertext())
    assert page.evaluate("document.getElementById('pareto-cost').selectedOptions[0].textContent.split(',')[0]") in words
    assert "unquantized" in words, "the legend"
    assert "reference" in words, "the model"
    image = base64.b64decode(saved["png"].partition(",")[2])
    assert image[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", image[16:24]) == (2200, 1280)
    assert [r for r in page.requests if not r.startswith(("blob:", "data:"))] == [html.as_uri()]
    assert page.errors == []


def test_column_groups_are_shown_one_at_a_time(page: browser.Page) -> None:
    seen = "[...document.querySelectorAll('#cells thead th')].filter(t => t.offsetParent).length"
    headline = page.evaluate(seen)
    page.choose("table-group", "all")
    assert page.evaluate(seen) > headline > 6
    page.choose("table-group", "latency")
    assert 3 < page.evaluate(seen) < 12
    page.choose("table-group", "headline")
    assert page.evaluate(seen) == headline


def test_keyboard_focus_shows_the_explanation(page: browser.Page) -> None:
    page.evaluate("document.querySelector('table.heat td[data-tip]').focus()")
    shown = page.evaluate("(t => t.hidden ? '' : t.textContent)(document.getElementById('tip'))")
    assert "95 % interval" in shown
    page.evaluate("document.activeElement.blur()")
    assert page.evaluate("document.getElementById('tip').hidden")


@pytest.mark.parametrize("width", [1400, 1000])
def test_every_link_of_the_bar_is_seen_where_there_is_room_for_lines(html: Path, width: int) -> None:
    assert PROGRAM is not None
    with browser.page(PROGRAM) as opened:
        opened.open(html, width=width)
        cut = "[...document.querySelectorAll('nav .links a')].filter(a => a.getBoundingClientRect().right > innerWidth).length"
        assert opened.evaluate("document.querySelectorAll('nav .links a').length") > 10
        assert opened.evaluate(cut) == 0
        assert opened.evaluate("document.querySelector('nav').getBoundingClientRect().height") < 90


@pytest.mark.parametrize("width", [1400, 420])
def test_nothing_is_wider_than_the_window(html: Path, width: int) -> None:
    assert PROGRAM is not None
    with browser.page(PROGRAM) as opened:
        opened.open(html, width=width, dark=True)
        assert opened.evaluate("document.documentElement.scrollWidth") <= width
        background = opened.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == "rgb(19, 20, 22)", "the dark colours are on"
        assert opened.evaluate(CELLS) == 20
