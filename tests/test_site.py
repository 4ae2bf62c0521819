"""The documentation site, built as its workflow builds it: every page, the public docstrings, and nothing from the network."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

import harness
from tests import scratch
from tests.scratch import ROOT

FETCHED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
"""Elements whose addresses a browser fetches by itself; of links, those that are no mere relation."""


class Addresses(HTMLParser):
    """What a page fetches, and where its links lead."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.linked: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "a":
            self.linked.append(given.get("href", ""))
        elif tag in FETCHED and given.get("rel") not in {"canonical", "next", "prev"}:
            self.fetched.append(given.get(FETCHED[tag], ""))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built by the command of the workflow's step from a copy of the tracked files and a small measured run."""
    copy = scratch.copy(tmp_path_factory.mktemp("site") / "checkout")
    suite = copy / "quick.yaml"
    suite.write_text(
        "name: quick\nmodels: [reference]\nmethods: {bf16: , hqq: {bits: 4}}\nprobes: [size, perplexity]\n"
        "corpora: [{corpus: reference, window: 128, tokens: 1024}]\ndevice: cpu\n"
    )
    harness.run(suite, results=copy / "results", cache=copy / "cache", threads=1)
    done = scratch.execute("make docs", copy)
    assert done.returncode == 0, done.stdout + done.stderr
    return copy / "site"


def addresses(page: Path) -> Addresses:
    parser = Addresses()
    parser.feed(page.read_text(encoding="utf-8"))
    return parser


@pytest.mark.slow
def test_the_site_has_every_page_of_docs_and_those_that_lie_elsewhere(site: Path) -> None:
    written = {p.relative_to(ROOT / "docs").with_suffix("").as_posix() for p in (ROOT / "docs").rglob("*.md")}
    pages = {p.parent.relative_to(site).as_posix() for p in site.rglob("index.html")}
    assert written | {"contributing", "changelog", "security", "examples", "."} == pages


@pytest.mark.slow
def test_the_site_publishes_the_report_of_what_was_measured(site: Path) -> None:
    text = (site / "example-report.html").read_text(encoding="utf-8")
    assert "hqq 4-bit" in text
    assert "example-report.html" in addresses(site / "index.html").linked


@pytest.mark.slow
def test_no_page_of_the_site_fetches_anything_from_elsewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        assert not [a for a in addresses(page).fetched if re.match(r"(https?:)?//", a)], page


@pytest.mark.slow
def test_every_link_within_the_site_leads_to_a_page_of_it(site: Path) -> None:
    for page in sorted(site.rglob("index.html")):
        for link in addresses(page).linked:
            path = link.partition("#")[0]
            if path and not re.match(r"[a-z]+:", path) and not path.startswith("/"):
                target = (page.parent / path).resolve()
                assert target.is_file() or (target / "index.html").is_file(), f"{page}: {link}"


@pytest.mark.slow
def test_the_python_interface_is_shown_with_its_docstrings(site: Path) -> None:
    shown = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", (site / "api" / "harness" / "index.html").read_text(encoding="utf-8")))
    assert 'harness.run("quick")' in shown
    functions: list[Callable[..., object]] = [harness.frame, harness.render]  # `run` is a package too: it is shown by that line
    for function in functions:
        first = (function.__doc__ or "").split(".")[0].split("`")[0]
        assert first.strip() in shown.replace("&#39;", "'"), function.__name__
