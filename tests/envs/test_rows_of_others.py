"""A method and a probe of another package, run in an environment of the method's own and reported without the package."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import proof, store
from harness.metrics import METRICS
from harness.report.view import view
from tests.envs.conftest import Installer
from tests.plugin_site import call, offer

WriteSuite = Callable[..., Path]

ROWS = '''
"""Offered: a method that needs another six than the main environment has, and a probe that says what it sees of its child."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import apart_rows.version
from harness.methods import fake
from harness.probes.fake import PROBE as SCRIPTED
from harness.spec import Answer, Measurement, Metric, Question


def quantize(request):
    import six

    if six.__version__ != "1.16.0":
        raise RuntimeError(f"six is {six.__version__}")
    fake.quantize(request)


def measure(session, question):
    beside = sorted(p.name for p in Path(sys.path[0]).iterdir())
    found = Measurement(metric="wheels", value=float(apart_rows.version.WHEELS), definition="counted", unit="wheels")
    return Answer(measurements=(found,), facts={"beside": beside, "python": sys.executable})


METHOD = replace(fake.METHOD, name="apart", quantize=quantize, environment="apart-env", requirements=("six==1.16.0",))
WHEELS = Metric(name="wheels", title="Wheels seen", unit="wheels", better="higher", definition="counted", description="All.")
PROBE = replace(
    SCRIPTED,
    name="wheels",
    title="Wheels",
    metrics=(WHEELS,),
    questions=lambda requests: [Question(probe="wheels", subject="")],
    measure=measure,
    prepare=None,
)
'''


def install(site: Path, version: str, wheels: int) -> None:
    files = {"apart_rows/__init__.py": "", "apart_rows/version.py": f"WHEELS = {wheels}", "apart_rows/rows.py": ROWS}
    rows = {"methods": {"apart": "apart_rows.rows:METHOD"}, "probes": {"wheels": "apart_rows.rows:PROBE"}}
    offer(site, "apart-rows", version, rows, files)
    (site / "beside.py").write_text("")


@pytest.fixture
def suite(write_suite: WriteSuite) -> Path:
    path = write_suite(extra="  apart: {bits: 4}")
    path.write_text(path.read_text().replace("probes: [quantize, fake]", "probes: [quantize, wheels]"))
    return path


def measured(folder: Path) -> dict[str, tuple[str, float, list[str]]]:
    """By method: the key, the number, and what lies on the child's path, in the newest run."""
    records = [r for r in store.read(folder / "results" / "scripted").records if r.question.probe == "wheels"]
    failures = [r.failure.message for r in records if r.failure is not None]
    assert failures == []
    answers = {r.cell.scheme.method: (r.key, r.answer) for r in records}
    return {m: (key, a.measurements[0].value, a.facts["beside"]) for m, (key, a) in answers.items() if a is not None}


def test_rows_of_another_package_run_where_they_say_and_their_version_is_in_every_key(
    suite: Path, tmp_path: Path, installer: Installer
) -> None:
    site = tmp_path / "site"
    install(site, "1.0", wheels=3)
    done = call(site, "run", suite, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    first = measured(tmp_path)
    assert {m: number for m, (_, number, _) in first.items()} == {"fake": 3.0, "apart": 3.0}
    assert {tuple(beside) for _, _, beside in first.values()} == {("apart_rows", "harness")}
    stored = store.read(tmp_path / "results" / "scripted")
    (listing,) = stored.environments.values()
    assert listing.name == "apart-env"
    artifacts = {p.name for p in (tmp_path / "cache" / "artifacts").iterdir()}

    again = call(site, "run", suite, cwd=tmp_path)
    assert "going on from there" in again.stdout
    assert measured(tmp_path) == first

    install(site, "1.1", wheels=4)
    assert call(site, "run", suite, cwd=tmp_path).returncode == 0
    later = measured(tmp_path)
    assert {m: number for m, (_, number, _) in later.items()} == {"fake": 4.0, "apart": 4.0}
    assert later["fake"][0] != first["fake"][0]
    assert later["apart"][0] != first["apart"][0]
    fresh = {p.name for p in (tmp_path / "cache" / "artifacts").iterdir()} - artifacts
    assert [name.partition("-")[0] for name in fresh] == ["apart"]  # the scripted baseline is nobody else's


def test_a_report_knows_the_metrics_of_a_package_that_is_not_there(suite: Path, tmp_path: Path, installer: Installer) -> None:
    site = tmp_path / "site"
    install(site, "1.0", wheels=3)
    assert call(site, "run", suite, cwd=tmp_path).returncode == 0
    assert "wheels" not in METRICS  # this process has no such package
    stored = store.read(tmp_path / "results" / "scripted")
    column = view(stored).column("wheels")
    assert column is not None
    assert (column.metric.title, column.metric.better, column.metric.description) == ("Wheels seen", "higher", "All.")
    without = call(tmp_path / "nothing", "report", "results/scripted", "-o", "report.html", cwd=tmp_path)
    assert without.returncode == 0, without.stderr
    assert "Wheels seen" in (tmp_path / "report.html").read_text()


@pytest.fixture
def told(suite: Path, tmp_path: Path, installer: Installer) -> Callable[[object], Path]:
    """A run file whose plan line says something else of the probes of other packages."""
    install(tmp_path / "site", "1.0", wheels=3)
    assert call(tmp_path / "site", "run", suite, cwd=tmp_path).returncode == 0
    path = store.newest(tmp_path / "results" / "scripted")
    lines = [json.loads(proof.unsealed(line)) for line in path.read_bytes().splitlines(keepends=True)]

    def write(probes: object) -> Path:
        changed = [{**line, "probes": probes} if line["kind"] == "plan" else line for line in lines]
        path.write_bytes(b"".join(proof.chained(json.dumps(line, separators=(",", ":")).encode() for line in changed)))
        proof.seal_path(path).unlink(missing_ok=True)
        return path

    return write


def test_a_metric_without_a_row_is_shown_as_stored_without_a_direction(told: Callable[[object], Path], tmp_path: Path) -> None:
    path = told({})
    column = view(store.read(path)).column("wheels")
    assert column is not None
    assert (column.metric.title, column.metric.unit, column.metric.better) == ("wheels", "wheels", "neither")
    assert call(tmp_path / "nothing", "report", path, "-o", "report.html", cwd=tmp_path).returncode == 0


def test_rows_that_are_none_are_refused_in_words(told: Callable[[object], Path], tmp_path: Path) -> None:
    row = {"name": "wheels", "title": "<b>", "unit": "", "better": "sideways", "definition": ""}
    for probes in (["wheels"], {"wheels": {"title": "W", "metrics": [row], "package": "p"}}):
        done = call(tmp_path / "nothing", "report", told(probes), "-o", "report.html", cwd=tmp_path)
        assert done.returncode == 2
        assert "line 2" in done.stderr
        assert "probes" in done.stderr
        assert "Traceback" not in done.stderr
