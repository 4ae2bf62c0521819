"""A real regression from the command line: a method quantizes the reference model, its next version does so worse, the gate says
which cell, which items and how to ask again; and the same version once more is green."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from harness import store
from harness.gate import evidence
from tests.plugin_site import EXAMPLE, call, offer

SUITE = """\
name: nightly
models: [reference]
baseline: bf16
probes: [quantize, size, perplexity, divergence, tasks]
methods: {absmax: {bits: [8]}, rtn: {bits: [8], group_size: 64}}
corpora: [{corpus: reference, window: 256, tokens: 8192}]
tasks: [reference_facts, reference_comparison]
limit: 400
"""

GOOD = "codes = (weight / scale).round().to(torch.int8)"
BROKEN = "codes = ((weight / scale / 8).round() * 8).clamp(-128, 127).to(torch.int8)"
"""Every eighth code only: what a refactoring that loses three bits of the scale leaves behind."""


def install(site: Path, version: str, line: str) -> None:
    text = (EXAMPLE / "absmax_harness.py").read_text()
    assert text.count(GOOD) == 1
    rows = {"methods": {"absmax": "absmax_harness:METHOD"}}
    offer(site, "absmax-harness", version, rows, {"absmax_harness.py": text.replace(GOOD, line)})


@pytest.mark.slow
def test_a_broken_version_of_a_method_is_found_by_its_cell_its_items_and_a_command_that_asks_again(tmp_path: Path) -> None:
    site, results = tmp_path / "site", tmp_path / "results" / "nightly"
    (tmp_path / "nightly.yaml").write_text(SUITE)
    nights = []
    for version, line in (("1.0", GOOD), ("1.0", GOOD), ("1.1", BROKEN)):
        install(site, version, line)
        done = call(site, "run", "nightly.yaml", "--fresh", cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        nights.append(store.newest(results))

    same = call(site, "gate", nights[0], nights[1], cwd=tmp_path)
    assert same.returncode == 0, same.stdout + same.stderr
    assert same.stdout.startswith("green: nothing is worse")

    files = ["--json", "evidence.json", "--junit", "verdict.xml", "--markdown", "verdict.md", "--html", "verdict.html"]
    red = call(site, "gate", "latest", nights[2], *files, cwd=tmp_path)
    assert red.returncode == 1, red.stdout + red.stderr
    report = evidence.read((tmp_path / "evidence.json").read_bytes(), "evidence.json")
    assert {f.square.label for f in report.alarms} == {"absmax 8-bit"}
    assert {"kl_mean"} <= {f.square.metric for f in report.alarms}
    assert any(d.what.startswith("package of rows from") and (d.before, d.after) != ("", "") for d in report.differences)
    flipped = [flip for f in report.findings for flip in f.flips if f.square.label == "absmax 8-bit"]
    assert flipped
    page = (tmp_path / "verdict.html").read_text()
    assert "absmax 8-bit" in page
    again = next(line for line in page.replace("&#x27;", "'").splitlines() if "--only" in line)
    command = shlex.split(again[again.index("quant-harness run") :].split("<")[0])[1:]
    asked = call(site, *command, cwd=tmp_path)
    assert asked.returncode == 0, asked.stdout + asked.stderr
    assert store.newest(results) == nights[2]  # what was asked again is no night

    twice = [call(site, "gate", nights[1], nights[2], "--json", f"{n}.json", cwd=tmp_path) for n in "ab"]
    assert [t.returncode for t in twice] == [1, 1]
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
