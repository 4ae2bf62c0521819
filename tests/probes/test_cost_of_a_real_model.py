"""Size, memory and latency of one small Llama through the real method, artifact and engine, against counts made by hand."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
import transformers

from harness.engines import ENGINES
from harness.measure import memory_phases
from harness.methods import METHODS
from harness.methods.base import LoadRequest, QuantizeRequest
from harness.probes import latency, memory, size
from harness.spec import Answer, Model, Phase, Quantized, Question, Scheme
from tests.squares import square
from tests.tiny_llama import llama, tokenizer

# Importing a model class imports hqq where it is installed, and that a part of torch that uses what torch deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

MIB = 2**20
HIDDEN, INTERMEDIATE, LAYERS, HEADS, KV_HEADS = 1024, 2048, 2, 8, 2
LINEAR = LAYERS * (2 * HIDDEN * HIDDEN + 2 * HIDDEN * HIDDEN * KV_HEADS // HEADS + 3 * HIDDEN * INTERMEDIATE)
PARAMETERS = LINEAR + 512 * HIDDEN + (2 * LAYERS + 1) * HIDDEN


def made(folder: Path, **shape: int) -> tuple[Path, Path]:
    """(source, artifact) of a random Llama in bf16."""
    source, artifact = folder / "source", folder / "artifact"
    artifact.mkdir()
    llama(dtype=torch.bfloat16, **shape).save_pretrained(source)
    tokenizer().save_pretrained(source)
    METHODS["bf16"].quantize(
        QuantizeRequest(
            model_dir=source,
            out_dir=artifact,
            origin=Quantized(scheme=Scheme(method="bf16", bits=16)),
            calibration=None,
            device="cpu",
            seed=0,
        )
    )
    return source, artifact


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """17 million parameters."""
    shape = {"hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE, "num_hidden_layers": LAYERS}
    return made(tmp_path_factory.mktemp("cell"), **shape, num_attention_heads=HEADS, num_key_value_heads=KV_HEADS)


class Session:
    """`probes.base.Session` for one native cell, loaded through its real engine."""

    def __init__(self, source: Path, artifact: Path) -> None:
        self.cell = square(Scheme(method="bf16", bits=16), model=Model(name="small", path=str(source)))
        self.model_dir, self.artifact_dir = source, artifact
        self.cache = artifact.parent / "cache"
        self.is_baseline = False
        self.device, self.seed = "cpu", 0
        self.memo: dict[str, Any] = {}
        self.blobs: dict[str, bytes] = {}
        self._loaded: Any = None
        self._phases: list[Phase] = []

    def load_baseline(self) -> Any:
        request = LoadRequest(
            artifact_dir=self.artifact_dir,
            model_dir=self.model_dir,
            origin=self.cell.origin,
            running=self.cell.running,
            device=self.device,
        )
        return ENGINES["transformers"].load(METHODS["bf16"], request)

    @property
    def loaded(self) -> Any:
        if self._loaded is None:
            self._loaded = self.load_baseline()
        return self._loaded

    def blob(self, name: str, data: bytes, extension: str) -> str:
        self.blobs[f"{name}.{extension}"] = data
        return f"{name}.{extension}"

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        with memory_phases.measure(name) as meter:
            yield
        assert meter.phase is not None
        self._phases.append(meter.phase)

    def phases(self) -> tuple[Phase, ...]:
        return tuple(self._phases)


def values(answer: Answer) -> dict[str, float]:
    return {m.metric: m.value for m in answer.measurements}


def test_the_ledger_of_a_bf16_model_is_sixteen_bits_for_each_of_its_parameters(cell: tuple[Path, Path]) -> None:
    answer = size.measure(Session(*cell), Question(probe="size", subject=""))  # type: ignore[arg-type]
    found = values(answer)
    assert found["bpw_quantized"] == found["bpw_model"] == 16
    assert answer.facts["parameters"] == PARAMETERS
    assert answer.facts["parameters_quantized"] == LINEAR
    assert found["file_bytes"] == (cell[0] / "model.safetensors").stat().st_size
    assert 0 < answer.facts["header_bytes"] < 10_000


@pytest.mark.skipif(memory_phases.resident() is None, reason="the kernel's counters are Linux's")
def test_the_memory_of_a_model_is_its_weights_its_cache_and_little_more(cell: tuple[Path, Path]) -> None:
    prompt, new, batch = 64, 8, 2
    question = Question(probe="memory", subject="", options={"prompt": prompt, "new": new, "batch": batch})
    answer = memory.measure(Session(*cell), question)  # type: ignore[arg-type]
    found = values(answer)
    assert "loaded and run" in answer.facts["rehearsal"]
    assert PARAMETERS * 2 <= found["weight_bytes_resident"] < PARAMETERS * 2 + MIB  # rotary tables come on top
    head = HIDDEN // HEADS
    assert found["kv_cache_bytes"] == 2 * LAYERS * batch * KV_HEADS * (prompt + new - 1) * head * 2
    assert answer.facts["context_tokens"] == prompt + new - 1
    assert not answer.facts["decode_includes_prefill"]
    assert found["peak_load_bytes"] < PARAMETERS * 2 + 40 * MIB
    for metric in ("peak_prefill_bytes", "peak_decode_bytes"):
        assert PARAMETERS * 2 * 0.97 < found[metric] < PARAMETERS * 2 + 40 * MIB
    assert found["peak_host_bytes"] >= found["peak_decode_bytes"]


WAYS = ("mapped", "read tensor by tensor", "whole file read first")


def weigh(source: Path, artifact: Path, how: str) -> dict[str, float]:
    """The memory probe's figures for a checkpoint that transformers maps, or is made to read."""
    auto: Any = transformers.AutoModelForCausalLM
    loading: Any = transformers.modeling_utils
    if how == WAYS[1]:
        loading.safe_open = lambda file, **given: safetensors.safe_open(file, **{**given, "backend": "pread"})
    elif how == WAYS[2]:
        auto.from_pretrained = functools.partial(auto.from_pretrained, disable_mmap=True)
    question = Question(probe="memory", subject="", options={"prompt": 64, "new": 4, "batch": 1})
    answer = memory.measure(Session(source, artifact), question)  # type: ignore[arg-type]
    return {**values(answer), "mapped": answer.facts["phases"]["decode"]["mapped_weights_bytes"]}


def weigh_each(source: Path, artifact: Path) -> None:
    """Prints every way's figures, each from a process of its own, forked as the harness forks its children from a warm one."""
    for how in WAYS:
        child = os.fork()
        if not child:
            print(json.dumps(weigh(source, artifact, how)), flush=True)
            os._exit(0)
        os.waitpid(child, 0)


@pytest.mark.skipif(memory_phases.resident() is None, reason="the kernel's counters are Linux's")
@pytest.mark.slow
def test_a_model_needs_the_same_memory_mapped_and_read_within_three_percent(tmp_path: Path) -> None:
    # 177 MiB, of which 3 % are more than an allocator's slack.
    shape = {"hidden_size": HIDDEN, "intermediate_size": 512, "num_hidden_layers": 22, "num_attention_heads": HEADS}
    source, artifact = made(tmp_path, **shape)
    code = (
        "from pathlib import Path; from tests.probes.test_cost_of_a_real_model import weigh_each; "
        f"weigh_each(*map(Path, {[str(source), str(artifact)]}))"
    )
    # Chance, taken out for all ways alike: how many tensors a loader's threads have under way, and how much of what they free
    # stays in the heap until it is trimmed.
    steady = {"OMP_NUM_THREADS": "1", "HF_DEACTIVATE_ASYNC_LOAD": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    environment = {**os.environ, **steady}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(lines) == len(WAYS), done.stderr[-3000:]
    for how, line in zip(WAYS, lines, strict=True):
        print(how, {name: round(value / MIB, 1) for name, value in line.items()})
    mapped, read, whole = lines
    size = (source / "model.safetensors").stat().st_size
    assert (mapped["mapped"], read["mapped"], whole["mapped"]) == (pytest.approx(size, rel=0.01), 0, 0)
    for metric in ("peak_load_bytes", "peak_prefill_bytes", "peak_decode_bytes", "peak_host_bytes"):
        assert read[metric] == pytest.approx(mapped[metric], rel=0.03), metric
    for metric in ("peak_prefill_bytes", "peak_decode_bytes"):
        assert whole[metric] == pytest.approx(mapped[metric], rel=0.03), metric
    # This loader does hold the file and the tensors at once: a machine must have room for both.
    assert whole["peak_load_bytes"] == pytest.approx(2 * size, rel=0.03)


def test_the_latency_of_a_model_beside_itself_has_every_figure(cell: tuple[Path, Path]) -> None:
    shape = {"prompt": 8, "new": 4, "batch": 2, "budget_seconds": 1.0}
    session = Session(*cell)
    answer = latency.measure(session, Question(probe="latency", subject="", options=shape))  # type: ignore[arg-type]
    found = {m.metric: m for m in answer.measurements}
    assert {"ttft", "ttft_ratio", "prefill_throughput"} <= set(found)
    assert "tpot" in found or answer.facts["withheld"]
    assert answer.facts["baseline"]["beside"] == "interleaved"
    assert answer.facts["roofline"]["active_weight_bytes"] == answer.facts["roofline"]["resident_weight_bytes"] >= PARAMETERS * 2
    raw = json.loads(session.blobs[found["ttft"].blob or ""])
    assert all(len(run["step_seconds"]) == 3 for run in raw["cell"] + raw["baseline"])
