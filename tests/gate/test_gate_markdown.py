"""The gate as a comment on a pull request: the verdict first, nothing too long, and no name that does anything."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser

import pytest
from markdown_it import MarkdownIt

from harness.gate import markdown
from harness.gate.types import Difference, GateReport
from tests.gate import reports_by_hand as by_hand
from tests.report import hostile

ALLOWED = {"h2", "h3", "p", "table", "thead", "tbody", "tr", "th", "td", "strong", "code", "pre", "ul", "li", "br"}
ALLOWED |= {"details", "summary"}


class Seen(HTMLParser):
    """Tags, the names of their attributes, comments, and the text outside blocks of code."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.comments: list[str] = []
        self.text = ""
        self.code = 0
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.code += tag == "pre"
        self.attributes.update(name for name, _ in attrs)

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)

    def handle_endtag(self, tag: str) -> None:
        self.code -= tag == "pre"

    def handle_data(self, data: str) -> None:
        self.text += "" if self.code else data


def seen(report: GateReport) -> Seen:
    """As a reader sees it: HTML within Markdown is shown, as GitHub does."""
    return Seen(MarkdownIt("commonmark", {"html": True, "linkify": False}).enable("table").render(markdown.comment(report)))


def test_the_verdict_comes_first_then_the_next_step_then_the_alarms() -> None:
    lines = [line for line in markdown.comment(by_hand.red()).splitlines() if line]
    assert lines[0] == markdown.MARKER
    assert lines[1] == "## ❌ red: 2 of 13 squares are worse; 1 failed, 1 is missing; 1 could not be compared"
    assert lines[2] == "**Next**"
    places = [lines.index("### What is worse"), lines.index("### Mean KL divergence")]
    assert places == sorted(places)
    assert (
        markdown.comment(by_hand.green()).splitlines()[2]
        == "## ✅ green: nothing that was compared is worse; 1 could not be compared"
    )


def test_one_reliable_metric_stands_open_and_all_else_is_folded() -> None:
    text = markdown.comment(by_hand.red())
    opened = re.sub(r"<details>.*?</details>", "", text, flags=re.DOTALL)
    assert re.findall(r"^### (.*)$", opened, flags=re.MULTILINE) == ["What is worse", "Mean KL divergence"]
    folded = re.findall(r"<summary>(.*?)</summary>", text)
    assert folded[:2] == [
        "Ask each of them again",
        "What differs between the two runs: 2 packages, commit, weights of awq 4-bit g64",
    ]
    assert folded[2:] == ["Failed: 1", "Missing: 1", "Not comparable: 1", "Improved: 1", "New: 1"]


def test_accuracy_stands_open_where_divergence_was_not_compared() -> None:
    report = by_hand.red(findings=(by_hand.lost_accuracy(), by_hand.slower()))
    assert "### Mean accuracy\n" in markdown.comment(report)


def test_each_alarm_has_the_command_that_asks_it_again() -> None:
    report = by_hand.red()
    for command in report.commands.values():
        assert f"```sh\n{command}\n```" in markdown.comment(report)


def test_the_possible_causes_are_a_table() -> None:
    assert "| package gptqmodel | 7.6.0 | 7.6.1 |" in markdown.comment(by_hand.red())


def test_a_long_table_is_cut_and_says_how_much_is_missing() -> None:
    many = by_hand.red(findings=tuple(by_hand.quiet(n) for n in range(80)))
    assert "and 30 more rows" in markdown.comment(many)


def huge(text: str) -> GateReport:
    """A night in which all is worse, with long names."""
    square = dataclasses.replace(by_hand.square(), label=text, title=text, subject=text)
    alarms = tuple(by_hand.lost_accuracy(square=dataclasses.replace(square, metric=f"m{n}")) for n in range(400))
    causes = tuple(Difference(what=f"package {text}{n}", before=text, after=text) for n in range(400))
    commands = {alarms[0].square.name: text * 100}
    return by_hand.red(findings=alarms, differences=causes, notes=(text,) * 10, commands=commands)


@pytest.mark.parametrize("text", ["x" * 300, "|" * 300, "`" * 300, "🤯" * 300, "<b>" * 100])
def test_a_comment_is_never_longer_than_github_takes(text: str) -> None:
    written = markdown.comment(huge(text))
    assert len(written.encode()) <= 65_536
    assert written.startswith(markdown.MARKER)
    assert "worse" in written.splitlines()[2]
    assert "At most 1 % of nights" in written, "the foot stays"


def test_a_shorter_limit_leaves_out_the_last_parts_and_says_so() -> None:
    written = markdown.comment(by_hand.red(), most=3000)
    assert len(written.encode()) <= 3000
    assert re.search(r"\d+ parts of this comment would make it too long", written)
    assert "### What is worse" in written
    assert "New: 1" not in written


STARTS = range(0, len(hostile.STRINGS), 20)


@pytest.mark.parametrize("start", STARTS)
def test_no_name_becomes_a_tag_a_link_or_a_block(start: int) -> None:
    strings = tuple(hostile.STRINGS[start : start + 20])
    shown = seen(by_hand.hostile(strings))
    assert set(shown.tags) <= ALLOWED
    assert shown.attributes <= {"class", "style"}, "of code blocks and of columns of numbers"
    assert shown.comments == [markdown.MARKER.removeprefix("<!--").removesuffix("-->")]
    plain = seen(by_hand.hostile(tuple(f"x{n}" for n in range(len(strings)))))
    assert shown.tags.count("details") == plain.tags.count("details")
    assert shown.tags.count("tr") == plain.tags.count("tr")
    assert shown.tags.count("td") == plain.tags.count("td")


def test_no_name_calls_a_person_or_an_issue() -> None:
    shown = seen(by_hand.hostile(("@octocat", "#12", "a/b#34", "GH &#64;octocat", "(@org/team)", "|&#35;7")))
    assert "octocat" in shown.text
    assert not re.search(r"@[A-Za-z0-9]|#\d", shown.text)


def test_the_same_report_gives_the_same_bytes() -> None:
    assert markdown.comment(by_hand.red()) == markdown.comment(by_hand.red())
