"""The picture of the main chart: whole XML, the same bytes each time, every cell of the model drawn, a PNG where a browser is."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from harness import store
from harness.errors import BadInput
from harness.report import figure
from harness.report.view import View, view
from tests.report import browser, synthetic

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> View:
    return view(store.read(synthetic.write(tmp_path_factory.mktemp("figure"), models=("a", "<b>&"), small=True)))


def test_every_quantized_cell_that_has_both_numbers_is_a_mark_with_its_name(shown: View) -> None:
    root = ElementTree.fromstring(figure.svg(shown, model="a"))
    names = {title.text for path in root.iter(f"{SVG}path") for title in path.iter(f"{SVG}title")}
    with_both = {c.label for c in shown.cells if c.model == "a" and c.label not in {"awq 2-bit g64", "hqq 3-bit g64"}}
    assert names == with_both - {"fp32", "fp16"}  # of the unquantized ones only the baseline


def test_a_name_that_would_be_markup_is_text(shown: View) -> None:
    image = figure.svg(shown, model="<b>&")
    texts = [t.text or "" for t in ElementTree.fromstring(image).iter(f"{SVG}text")]
    assert any("<b>&" in text for text in texts)


def test_equal_records_give_equal_bytes_and_a_paper_has_no_title(shown: View) -> None:
    assert figure.svg(shown, model="a") == figure.svg(shown, model="a")
    assert b"Synthetic numbers" in figure.svg(shown, model="a")
    assert b"Synthetic numbers" not in figure.svg(shown, model="a", paper=True)


def test_of_several_models_one_has_to_be_chosen(shown: View) -> None:
    with pytest.raises(BadInput, match="choose one with --model"):
        figure.svg(shown)
    with pytest.raises(BadInput, match="not in these results"):
        figure.svg(shown, model="c")


def test_without_a_browser_a_png_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadInput, match="apt-get install chromium"):
        figure.browser_png(b"<svg/>")


@pytest.mark.slow
def test_a_browser_draws_the_picture_twice_its_size(shown: View) -> None:
    if browser.find() is None:
        pytest.skip(browser.LACKING)
    data = figure.browser_png(figure.svg(shown, model="a"))
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert [int.from_bytes(data[i : i + 4], "big") for i in (16, 20)] == [2 * figure.WIDTH, 2 * figure.HEIGHT]
