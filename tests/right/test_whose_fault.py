"""An answer that is no number is laid at the door of what is broken, with the tensor's name: the source, a given checkpoint, the
range of a dtype, or the method."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.engines.transformers import Transformers
from harness.formats import gguf_weights
from harness.probes.blame import broken
from harness.spec import Given, Model, Scheme
from tests.right.cases import cell, checkpoint, failures, run
from tests.tiny_llama import TinySession, llama, tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning", "ignore::DeprecationWarning:torch")

TENSOR = "model.layers.0.self_attn.k_proj"


def spoil(folder: Path, tensor: str) -> None:
    """One NaN into a tensor of the checkpoint in `folder`."""
    file = folder / "model.safetensors"
    held = dict(load_file(file))
    held[tensor].view(-1)[0] = float("nan")
    save_file(held, file, metadata={"format": "pt"})


def asked(source: Path, artifact: Path, *, of: Any) -> TinySession:
    made = TinySession(Transformers(llama().eval(), tokenizer()), source)
    made.cell, made.artifact_dir = of, artifact
    return made


def given(place: Path) -> Any:
    scheme = Scheme(method="prequantized", bits=4.0)
    return replace(cell("rtn", 4.0), origin=Given(scheme=scheme, checkpoint=Model(name="given", path=str(place))))


@pytest.mark.slow
def test_a_given_checkpoint_that_holds_nan_is_named_with_the_tensor_and_the_source_is_not(tmp_path: Path) -> None:
    """Real parts: GPTQModel writes the checkpoint and loads it."""
    checkpoint(tmp_path / "m", model=llama(hidden_size=128))
    run(tmp_path, models="[{path: m}]", methods="rtn: {bits: 4, group_size: 64}")
    (artifact,) = [path.parent for path in (tmp_path / "cache").rglob("quantize_config.json")]
    own = shutil.ignore_patterns("artifact.json", "reload_check.json", "verified-*", "answers-*")
    shutil.copytree(artifact, tmp_path / "given", ignore=own)
    for path in (tmp_path / "m").glob("token*"):
        shutil.copy(path, tmp_path / "given")
    spoil(tmp_path / "given", f"{TENSOR}.scales")
    stored = run(tmp_path, models="[{path: m}, {path: given, of: m}]", methods="fp16: ")
    said = {r.failure.message for r in failures(stored) if r.failure is not None}
    assert said == {
        "512 of 512 fixed tokens are answered with NaN or infinity; the given checkpoint is broken: NaN or infinity is stored in "
        f"{TENSOR}.scales; fetch or save the model again"
    }
    assert {r.cell.label for r in failures(stored)} == {"given gptq 4-bit g64"}


def test_a_source_that_holds_nan_is_at_fault_whatever_was_made_of_it(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "m")
    spoil(source, f"{TENSOR}.weight")
    for each in (cell("rtn", 4.0), cell("fp16", 16.0), given(source)):
        said = broken(asked(source, source, of=each))
        assert said == f"the source is broken: NaN or infinity is stored in {TENSOR}.weight; fetch or save the model again"


def test_a_sound_source_leaves_the_method_and_what_it_wrote(tmp_path: Path) -> None:
    source, artifact = checkpoint(tmp_path / "m"), checkpoint(tmp_path / "a")
    finite = "; the source's stored weights are finite"
    assert broken(asked(source, artifact, of=cell("rtn", 4.0))) == f"the artifact is broken: it is rtn's, or its kernel's{finite}"
    spoil(artifact, f"{TENSOR}.weight")
    assert broken(asked(source, artifact, of=cell("rtn", 4.0))) == (
        f"the artifact is broken: rtn wrote NaN or infinity into {TENSOR}.weight{finite}"
    )
    assert broken(asked(source, artifact, of=given(artifact))).startswith("the given checkpoint is broken: NaN or infinity is")


def test_a_narrow_dtype_is_told_to_be_too_narrow(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "m")
    assert broken(asked(source, source, of=cell("fp16", 16.0))) == (
        "numbers of this model are beyond the range of fp16: take fp32; the source's stored weights are finite"
    )


def test_what_cannot_be_read_is_not_called_finite(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    said = broken(asked(tmp_path / "empty", tmp_path / "empty", of=cell("rtn", 4.0)))
    assert said == "the artifact is broken: it is rtn's, or its kernel's"
    said = broken(asked(tmp_path / "empty", tmp_path / "empty", of=given(tmp_path)))
    assert said == "the given checkpoint is broken, or what computes with it; fetch or save the model again"


@pytest.mark.parametrize("name", ["plain", "blocks"])
def test_nan_in_a_gguf_file_is_found_in_numbers_and_in_the_scales_of_blocks(name: str, tmp_path: Path) -> None:
    numbers = np.ones((4, 64), dtype=np.float32)
    blocks = gguf.quants.quantize(numbers, gguf.GGMLQuantizationType.Q8_0)
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    numbers[1, 2] = np.nan
    scale = blocks.copy()
    scale[2, :2] = np.array([np.inf], dtype=np.float16).view(np.uint8)
    kind = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor("sound", blocks, raw_dtype=kind)
    if name == "plain":
        writer.add_tensor("plain", numbers)
    else:
        writer.add_tensor("blocks", scale, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert gguf_weights.nonfinite(tmp_path / "a.gguf") == [name]
    source = checkpoint(tmp_path / "m", dtype=torch.float32)
    said = broken(asked(source, tmp_path, of=given(tmp_path / "a.gguf")))
    assert said == f"the given checkpoint is broken: NaN or infinity is stored in {name}; fetch or save the model again"
