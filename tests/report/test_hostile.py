"""Text that attacks: whatever stands in a record, the page holds it as text and as nothing else."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import store
from harness.report import render
from harness.report.markup import DIRECTIONS, data_block, el, text
from tests.report import browser, hostile
from tests.report.test_report import Parsed

PROGRAM = browser.find()
ELEMENTS = {
    "html",
    "head",
    "meta",
    "title",
    "style",
    "body",
    "a",
    "nav",
    "div",
    "span",
    "main",
    "section",
    "h1",
    "h2",
    "h3",
    "h4",
    "p",
    "ul",
    "li",
    "table",
    "caption",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "small",
    "strong",
    "b",
    "i",
    "svg",
    "path",
    "rect",
    "line",
    "text",
    "code",
    "pre",
    "details",
    "summary",
    "button",
    "label",
    "select",
    "optgroup",
    "option",
    "figure",
    "noscript",
    "input",
    "fieldset",
    "legend",
    "aside",
    "symbol",
    "use",
    "dl",
    "dt",
    "dd",
    "script",
    "mark",
}
"""What the page is made of; `title` is both the page's and a chart's."""
URLS = frozenset({"href", "src", "srcset", "action", "formaction", "data", "poster", "background", "ping", "xlink:href", "cite"})
FEW = hostile.STRINGS[::16]
"""Labels of the fast tests; all other places take all strings in turn."""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return render(store.read(hostile.write(tmp_path_factory.mktemp("hostile"), FEW)))


@pytest.fixture(scope="module")
def parsed(page: bytes) -> Parsed:
    return Parsed(page)


def test_there_are_at_least_two_hundred_of_them_and_each_kind_is_there() -> None:
    assert len(hostile.STRINGS) >= 200
    assert max(map(len, hostile.STRINGS)) >= 10_000
    for needle in ("<script>", '" onerror=', "javascript:", "\u202e", "../", "\U0001f4a9", "\0"):
        assert any(needle in one for one in hostile.STRINGS), needle


def test_no_string_adds_an_element_a_handler_or_an_address(parsed: Parsed) -> None:
    for tag, attributes in parsed.tags:
        assert tag in ELEMENTS, f"<{tag}> is none of the page's elements"
        for name, value in attributes.items():
            assert not name.startswith("on"), f"{tag} has a handler: {name}={value}"
            assert name not in URLS or str(value).startswith("#"), f"{tag} {name}={value}"
            assert name != "srcdoc"
    assert sum(tag == "script" for tag, _ in parsed.tags) == 4, "two blocks of data, plotly.js packed, and the page's own script"


def test_styles_and_classes_hold_nothing_from_a_record(parsed: Parsed) -> None:
    import re

    for tag, attributes in parsed.tags:
        assert re.fullmatch(r"(--a:[0-9.]+)?", attributes.get("style") or ""), f"{tag} style={attributes.get('style')}"


def test_marks_that_turn_text_around_are_shown_as_their_codes(page: bytes) -> None:
    written = page.decode()
    for mark, code in DIRECTIONS.items():
        assert chr(mark) not in written
        assert code in written


def test_the_data_block_is_json_and_holds_none_of_these_marks(parsed: Parsed) -> None:
    data = json.loads(parsed.scripts[0])
    assert not [mark for mark in hostile.MARKS if mark in json.dumps(data, ensure_ascii=False)]


@pytest.mark.parametrize("string", hostile.STRINGS, ids=range(len(hostile.STRINGS)))
def test_each_string_comes_back_from_the_page_as_it_went_in(string: str) -> None:
    seen = Parsed(f"<p>{el('b', string, title=string)}</p>".encode())
    shown = "".join(
        DIRECTIONS.get(ord(c), "\ufffd" if (c < " " and c not in "\n\t") or "\x7f" <= c <= "\x9f" else c) for c in string
    )
    assert [tag for tag, _ in seen.tags] == ["p", "b"]
    assert seen.tags[1][1]["title"] == shown
    assert "".join(seen.texts) == shown
    carried = Parsed(data_block("x", {"k": string}).encode())
    plain = "".join(DIRECTIONS.get(ord(c), c) for c in string)
    assert json.loads(carried.scripts[0]) == {"k": plain}


def _shown(c: str) -> str:
    """What stands on the page for a character."""
    if (c < " " and c not in "\n\t") or "\x7f" <= c <= "\x9f":
        return "\ufffd"
    return DIRECTIONS.get(ord(c), c)


def test_the_same_records_in_any_order_give_equal_bytes(page: bytes, tmp_path: Path) -> None:
    run = store.read(hostile.write(tmp_path, FEW))
    records, costs = list(run.records), list(run.costs)
    random.Random(1).shuffle(records)
    random.Random(2).shuffle(costs)
    assert render(dataclasses.replace(run, records=tuple(records), costs=tuple(costs))) == page


def test_two_hostile_runs_side_by_side_add_no_element_either(tmp_path: Path) -> None:
    few = FEW[:6]
    runs = [store.read(hostile.write(tmp_path / name, few)) for name in ("a", "b")]
    seen = Parsed(render(*runs))
    assert {tag for tag, _ in seen.tags} <= ELEMENTS
    assert not [name for _, attributes in seen.tags for name in attributes if name.startswith("on")]


def test_text_that_is_no_text_is_replaced() -> None:
    assert text("a\0b\x85\x1bc\ud800") == "a\ufffdb\ufffd\ufffdc?"


# ---- in a real browser ----


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Page]:
    if PROGRAM is None:
        pytest.skip(browser.LACKING)
    folder = tmp_path_factory.mktemp("opened")
    path = folder / "report.html"
    path.write_bytes(render(store.read(hostile.write(folder / "results", hostile.STRINGS[1::6]))))
    with browser.page(PROGRAM) as tab:
        tab.open(path)
        tab.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
        yield tab


@pytest.mark.slow
def test_in_a_browser_no_string_became_a_node_a_handler_or_an_address(opened: browser.Page) -> None:
    handlers = (
        "[...document.querySelectorAll('*')].flatMap(e => [...e.attributes].filter(a => /^on/i.test(a.name)).map(a => a.name))"
    )
    assert opened.evaluate(handlers) == []
    addresses = (
        "[...document.querySelectorAll('*')].flatMap(e => [...e.attributes])"
        ".filter(a => /^(xlink:)?(href|src|action|formaction|data|poster|ping)$/i.test(a.name)).map(a => a.value)"
        ".filter(v => !v.startsWith('#'))"
    )
    assert opened.evaluate(addresses) == []
    foreign = "iframe,object,embed,link,base,form,img[src],video,audio,template,math,foreignObject,textarea,xmp,plaintext"
    assert opened.evaluate(f"[...document.querySelectorAll('{foreign}')].map(e => e.outerHTML.slice(0, 200))") == []
    assert opened.evaluate("document.querySelectorAll('script').length") == 5, "plotly.js unpacked besides"


@pytest.mark.slow
def test_in_a_browser_nothing_was_asked_for_nothing_ran_and_no_mark_turns_text(opened: browser.Page) -> None:
    assert len(opened.requests) == 1
    assert opened.errors == []
    marks = "".join(f"\\u{ord(c):04x}" for c in hostile.MARKS)
    assert opened.evaluate(f"/[{marks}]/.test(document.body.innerText)") is False
    assert opened.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.slow
def test_in_a_browser_a_copied_table_is_one_table_of_markdown(opened: browser.Page) -> None:
    tables = opened.evaluate("[...document.querySelectorAll('main .scroll table')].map(t => quantHarnessMarkdown(t))")
    assert len(tables) > 10
    for table in tables:
        lines = table.splitlines()
        assert {len(_squares(line)) for line in lines} == {len(_squares(lines[0]))}
        assert "<script" not in table.replace("\\<", "")


def _squares(line: str) -> list[str]:
    return line.replace("\\\\", "").replace("\\|", "").split("|")
