"""The verbs that show and publish, as people call them: each command of docs/publishing.md, endings, mistakes, former sites."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from harness import cli, cli_env
from harness.cli_publish import ENDINGS
from tests.report import synthetic

PAGE = Path(__file__).parents[2] / "docs" / "publishing.md"
COMMANDS = [
    line.split("  #")[0].strip()
    for block in re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]


@pytest.fixture(autouse=True)
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    synthetic.write(tmp_path / "results" / "quick", small=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "results" / "quick"


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    return int(ended.value.code or 0)


def test_the_page_shows_each_verb() -> None:
    assert {shlex.split(command)[1] for command in COMMANDS} == {"results", "figure", "site"}


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_of_the_page_does_what_it_says(command: str, tmp_path: Path) -> None:
    words = shlex.split(command)
    assert call(*words[1:]) == 0
    if "-o" in words:
        target = tmp_path / words[words.index("-o") + 1]
        assert (target / "index.html" if words[1] == "site" else target).stat().st_size > 500


@pytest.mark.slow
def test_the_ending_of_a_file_chooses_its_format(tmp_path: Path) -> None:
    begins = {".csv": b"model,method,", ".json": b"[\n {", ".parquet": b"PAR1", ".md": b"| scheme |", ".tex": b"% needs"}
    assert set(begins) == set(ENDINGS)
    for ending, first in begins.items():
        assert call("results", "results/quick", "-o", f"x{ending}") == 0
        assert (tmp_path / f"x{ending}").read_bytes().startswith(first)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["results", "results/quick", "-o", "x.xls"], "its ending names no format"),
        (["figure", "results/quick", "-o", "x.pdf"], "a picture ends in .svg or .png"),
        (["site", "nowhere", "-o", "s"], "holds no results"),
        (["site", "results", "-o", "results"], "no site that this command made"),
    ],
)
def test_a_mistake_is_answered_in_words_with_exit_code_two(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str], stored: Path
) -> None:
    before = sorted(stored.rglob("*"))
    assert call(*arguments) == 2
    assert says in " ".join(capsys.readouterr().err.split())
    assert sorted(stored.rglob("*")) == before


@pytest.mark.slow
def test_a_site_replaces_a_former_site_and_leaves_no_draft(tmp_path: Path) -> None:
    assert call("site", "results", "-o", "out/site") == 0
    (tmp_path / "out" / "site" / "old.html").write_text("old")
    assert call("site", "results", "-o", "out/site") == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["site"]
    assert not (tmp_path / "out" / "site" / "old.html").exists()


@pytest.mark.slow
def test_no_install_command_is_cut_however_narrow_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    lacking = {state.install for state in cli_env.here().values() if state.install}
    assert call("methods") == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.partition(": ")[2] for line in lines if line.startswith("missing for ")} == lacking
