"""The ledger against counts made by hand from the block structures of the formats."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import harness.methods
from harness.artifact import StoredTensor
from harness.errors import BadInput
from harness.methods.base import Method
from harness.probes.requests import ProbeRequests
from harness.probes.size import PROBE, carriers
from harness.spec import Model, Question, Scheme
from tests.squares import square

ROWS, COLUMNS = 256, 512
LINEAR = "model.layers.0.mlp.down_proj"
EMBEDDING = "model.embed_tokens"


def write_safetensors(path: Path, tensors: dict[str, tuple[str, list[int], int]]) -> None:
    header: dict[str, Any] = {}
    offset = 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(offset))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A model with one linear layer of 256 x 512 and an embedding of 1000 x 512, in 16 bits."""
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "hidden_size": COLUMNS}))
    weights = {
        f"{EMBEDDING}.weight": ("BF16", [1000, COLUMNS], 1000 * COLUMNS * 2),
        f"{LINEAR}.weight": ("BF16", [ROWS, COLUMNS], ROWS * COLUMNS * 2),
    }
    write_safetensors(folder / "model.safetensors", weights)
    return folder


def method(ledger: list[StoredTensor], **changes: Any) -> Method:
    plain = Method(
        name="toy",
        title="Toy",
        version="1",
        bits=(4,),
        options={},
        engine="transformers",
        kernel_cpu={4: "real"},
        kernel_cuda={4: "real"},
        quantize=lambda request: None,
        load=lambda request: None,
        supports=lambda scheme, shape, device: None,
        bits_per_weight=lambda scheme: 4.0,
        ledger=lambda artifact, scheme: ledger,
        kernels=lambda model: [],
    )
    return dataclasses.replace(plain, **changes)


def measure(
    monkeypatch: pytest.MonkeyPatch, source: Path, ledger: list[StoredTensor], bits: float = 4, **changes: Any
) -> tuple[dict[str, float], dict[str, Any]]:
    monkeypatch.setattr(harness.methods, "METHODS", {"toy": method(ledger, **changes)})
    artifact = source.parent / "artifact"
    artifact.mkdir(exist_ok=True)
    session: Any = SimpleNamespace(
        cell=square(Scheme(method="toy", bits=bits), model=Model(name="m", path=str(source))),
        artifact_dir=artifact,
        model_dir=source,
        cache=source.parent / "cache",
        device="cpu",
    )
    answer = PROBE.measure(session, Question(probe="size", subject=""))
    declared = {metric.name: metric for metric in PROBE.metrics}
    for measurement in answer.measurements:
        assert measurement.unit == declared[measurement.metric].unit
        assert measurement.definition == declared[measurement.metric].definition
    return {m.metric: m.value for m in answer.measurements}, dict(answer.facts)


def stored(name: str, role: str, bits: float, layer: str = LINEAR) -> StoredTensor:
    assert bits == int(bits)
    return StoredTensor(name=name, layer=layer, role=role, bits=int(bits))  # type: ignore[arg-type]


KEPT = stored(f"{EMBEDDING}.weight", "other", 1000 * COLUMNS * 16, layer="")
WEIGHTS = ROWS * COLUMNS

# (what, packed bits per weight, [(role, bits of one such number, weights that share it)], bits per weight by hand)
FORMATS = [
    ("symmetric 4-bit, group 128, 16-bit scale", 4, [("scale", 16, 128)], 4.125),
    ("the same with a 4-bit zero point", 4, [("scale", 16, 128), ("zero", 4, 128)], 4.15625),
    ("NF4, blocks of 64 with a 32-bit maximum", 4, [("scale", 32, 64)], 4.5),
    ("NF4 with the maxima quantized again", 4, [("scale", 8, 64), ("scale", 32, 64 * 256)], 4.126953125),
    ("MXFP4, blocks of 32 with an 8-bit exponent", 4, [("scale", 8, 32)], 4.25),
    ("NVFP4, blocks of 16 with an 8-bit float", 4, [("scale", 8, 16)], 4.5),
    ("Q8_0, blocks of 32 with a 16-bit scale", 8, [("scale", 16, 32)], 8.5),
    ("Q4_K, 144 bytes per 256", 4, [("scale", 16, 256), ("scale", 12 * 8, 256), ("zero", 16, 256)], 4.5),
    ("Q6_K, 210 bytes per 256", 6, [("scale", 8, 16), ("scale", 16, 256)], 6.5625),
]


@pytest.mark.parametrize(("packed", "shared", "by_hand"), [row[1:] for row in FORMATS], ids=[row[0] for row in FORMATS])
def test_bits_per_weight_are_those_of_the_block_structure(
    monkeypatch: pytest.MonkeyPatch, source: Path, packed: int, shared: list[tuple[str, int, int]], by_hand: float
) -> None:
    ledger = [stored("packed", "weight", packed * WEIGHTS), KEPT]
    ledger += [stored(f"{role}{i}", role, bits * WEIGHTS / group) for i, (role, bits, group) in enumerate(shared)]
    found, facts = measure(monkeypatch, source, ledger, bits=packed)
    assert found["bpw_quantized"] == by_hand
    assert found["nominal_bits"] == packed
    everything = by_hand * WEIGHTS + 1000 * COLUMNS * 16
    assert found["bpw_model"] == pytest.approx(everything / (WEIGHTS + 1000 * COLUMNS), rel=1e-12)
    assert found["compression"] == pytest.approx(16 / found["bpw_model"], rel=1e-12)
    assert sum(facts["bits_by_role"].values()) == everything
    assert facts["notes"] == []


def test_an_unquantized_cell_has_the_bits_it_is_stored_in(monkeypatch: pytest.MonkeyPatch, source: Path) -> None:
    ledger = [stored(f"{LINEAR}.weight", "other", 16 * WEIGHTS, layer=""), KEPT]
    found, facts = measure(monkeypatch, source, ledger, bits=16, unquantized=True)
    assert found["bpw_quantized"] == found["bpw_model"] == 16
    assert found["compression"] == 1
    assert facts["parameters_quantized"] == WEIGHTS
    assert found["file_bytes"] == (source / "model.safetensors").stat().st_size  # the artifact points at the source's own file


def test_values_stored_wider_than_the_scheme_says_are_marked(monkeypatch: pytest.MonkeyPatch, source: Path) -> None:
    _, facts = measure(monkeypatch, source, [stored("packed", "weight", 8 * WEIGHTS), KEPT], bits=2)
    assert "8.00 bits per weight" in facts["notes"][0]


def test_a_simulated_cell_is_marked(monkeypatch: pytest.MonkeyPatch, source: Path) -> None:
    ledger = [stored("packed", "weight", 4 * WEIGHTS), KEPT]
    _, facts = measure(monkeypatch, source, ledger, kernel_cpu={4: "simulated"})
    assert facts["notes"][0].startswith("simulated")


def test_layers_of_different_widths_show_as_a_spread(monkeypatch: pytest.MonkeyPatch, source: Path) -> None:
    ledger = [stored("a", "weight", 4 * WEIGHTS), stored("b", "weight", 8 * 1000 * COLUMNS, layer=EMBEDDING)]
    found, facts = measure(monkeypatch, source, ledger)
    assert facts["bpw_by_layer"] == {"least": 4, "median": 8, "most": 8, "layers": 2}
    assert facts["share_quantized"] == 1
    assert found["bpw_quantized"] == found["bpw_model"]


def test_a_ledger_of_another_model_is_refused(monkeypatch: pytest.MonkeyPatch, source: Path) -> None:
    with pytest.raises(BadInput, match="elsewhere"):
        measure(monkeypatch, source, [stored("packed", "weight", 8, layer="elsewhere")])


def test_an_artifact_of_a_larger_model_is_refused(monkeypatch: pytest.MonkeyPatch, source: Path) -> None:
    with pytest.raises(BadInput, match="not made of this model"):
        measure(monkeypatch, source, [stored(f"{LINEAR}.weight", "other", 16 * 100 * WEIGHTS, layer=""), KEPT])


def test_an_empty_artifact_is_refused(monkeypatch: pytest.MonkeyPatch, source: Path) -> None:
    with pytest.raises(BadInput, match="no tensors"):
        measure(monkeypatch, source, [])


def test_files_are_counted_once_and_only_if_they_carry_weights(tmp_path: Path) -> None:
    blob = tmp_path / "blob"
    blob.write_bytes(bytes(100))
    folder = tmp_path / "artifact"
    (folder / "nested").mkdir(parents=True)
    (folder / "model.safetensors").symlink_to(blob)
    (folder / "nested" / "again.safetensors").symlink_to(blob)
    (folder / "qmodel.pt").write_bytes(bytes(10))
    (folder / "pytorch_model.bin").write_bytes(bytes(7))
    for name in ("tokenizer.bin", "training_args.bin", "config.json", "tokenizer.json"):
        (folder / name).write_bytes(bytes(5))
    assert sorted(path.name for path in carriers(folder)) == ["model.safetensors", "qmodel.pt"]
    assert sum(path.stat().st_size for path in carriers(folder)) == 110


def test_one_question_is_asked_of_a_cell_and_it_needs_no_model() -> None:
    assert [question.subject for question in PROBE.questions(ProbeRequests())] == [""]
    assert not PROBE.needs_model
    assert PROBE.simulated
