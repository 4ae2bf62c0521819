"""fp32, bf16, fp16: links where the source has the dtype already, an exact cast elsewhere, shards and all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.errors import BadInput, Unsupported
from harness.methods import METHODS, reload
from harness.methods.base import LoadRequest, QuantizeRequest
from harness.spec import Quantized, Running, Scheme
from tests.tiny_llama import llama

# Importing a model class imports hqq where it is installed, and that a part of torch that uses what torch deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bf16 Llama in several shards."""
    folder = tmp_path_factory.mktemp("source")
    llama(dtype=torch.bfloat16).save_pretrained(folder, max_shard_size="500KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


def quantize(name: str, source: Path, out: Path) -> Path:
    out.mkdir()
    scheme = Scheme(method=name, bits=METHODS[name].bits[0])
    METHODS[name].quantize(
        QuantizeRequest(model_dir=source, out_dir=out, origin=Quantized(scheme=scheme), calibration=None, device="cpu", seed=0)
    )
    return out


def load(name: str, artifact: Path) -> Any:
    scheme = Scheme(method=name, bits=METHODS[name].bits[0])
    return METHODS[name].load(
        LoadRequest(
            artifact_dir=artifact,
            model_dir=artifact,
            origin=Quantized(scheme=scheme),
            running=Running(engine="transformers"),
            device="cpu",
        )
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def test_the_same_dtype_is_linked_and_not_copied(source: Path, tmp_path: Path) -> None:
    artifact = quantize("bf16", source, tmp_path / "a")
    files = sorted(artifact.glob("*.safetensors"))
    assert [f.name for f in files] == sorted(f.name for f in source.glob("*.safetensors"))
    assert all(f.is_symlink() and f.readlink().is_absolute() and f.resolve().parent == source.resolve() for f in files)
    assert json.loads((artifact / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize(("name", "dtype"), [("fp32", torch.float32), ("fp16", torch.float16)])
def test_another_dtype_is_cast_tensor_by_tensor_as_torch_would(
    source: Path, tmp_path: Path, name: str, dtype: torch.dtype
) -> None:
    artifact = quantize(name, source, tmp_path / "a")
    before, after = weights(source), weights(artifact)
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        assert after[key].dtype == dtype
        assert torch.equal(after[key], tensor.to(dtype))


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_a_native_cell_holds_the_source_in_its_own_dtype(source: Path, tmp_path: Path, name: str) -> None:
    artifact = quantize(name, source, tmp_path / "a")
    model = load(name, artifact)
    wide = {"fp32": 32, "bf16": 16, "fp16": 16}[name]
    ledger = METHODS[name].ledger(artifact, Scheme(method=name, bits=wide))
    assert sum(t.bits for t in ledger) == wide * sum(p.numel() for p in model.parameters())
    assert {p.dtype.itemsize * 8 for p in model.parameters()} == {wide}
    kernels = METHODS[name].kernels(model)
    assert len(kernels) == 14
    assert not any(k.dequantized for k in kernels)
    assert reload.check(model, artifact) is None


def test_a_single_file_of_any_name_loads_as_the_checkpoint(tmp_path: Path) -> None:
    source = tmp_path / "s"
    llama(dtype=torch.bfloat16).save_pretrained(source)
    (source / "model.safetensors").rename(source / "weights.safetensors")
    assert load("bf16", quantize("bf16", source, tmp_path / "a")).dtype == torch.bfloat16


def test_values_beyond_float16_are_refused_and_not_turned_into_infinity(tmp_path: Path) -> None:
    source = tmp_path / "s"
    model = llama(dtype=torch.bfloat16)
    with torch.no_grad():
        model.model.embed_tokens.weight[7, 3] = 1e30
    model.save_pretrained(source)
    with pytest.raises(Unsupported, match="beyond the range of float16"):
        quantize("fp16", source, tmp_path / "a")


def test_integer_tensors_are_kept_as_they_are(tmp_path: Path) -> None:
    source = tmp_path / "s"
    source.mkdir()
    (source / "config.json").write_text("{}")
    save_file({"w": torch.ones(3, dtype=torch.bfloat16), "n": torch.arange(5)}, source / "model.safetensors")
    found = weights(quantize("fp32", source, tmp_path / "a"))
    assert found["n"].dtype == torch.int64
    assert found["w"].dtype == torch.float32


def test_a_checkpoint_that_is_quantized_already_has_no_native_cell(tmp_path: Path) -> None:
    source = tmp_path / "s"
    source.mkdir()
    (source / "config.json").write_text('{"quantization_config": {"quant_method": "gptq"}}')
    with pytest.raises(Unsupported, match="already quantized"):
        quantize("bf16", source, tmp_path / "a")


def test_a_missing_shard_is_named(source: Path, tmp_path: Path) -> None:
    copy = tmp_path / "s"
    copy.mkdir()
    for path in source.iterdir():
        if "00001" not in path.name:
            (copy / path.name).symlink_to(path)
    with pytest.raises(BadInput, match="model-00001"):
        quantize("bf16", copy, tmp_path / "a")
