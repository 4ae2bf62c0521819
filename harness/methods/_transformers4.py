"""What autogptq and autoawq share: libraries of transformers 4, in one environment of their own, whose checkpoints the main
environment loads.

The two originals are no longer maintained. They quantize in the environment `originals`, with the last versions that worked
together; what they write, the GPTQ and AWQ formats, is loaded in the main environment through GPTQModel (see gptqmodel.py), so
that they and their successors answer through the same kernels and differ by their weights alone.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from harness.artifact import ModelShape
from harness.errors import Unsupported
from harness.formats import gptq_file, safetensors_file
from harness.methods import reload
from harness.methods.base import QuantizeRequest
from harness.models import build
from harness.spec import Json

ENVIRONMENT = "originals"
REQUIREMENTS = (
    "auto-gptq==0.7.1",
    "autoawq==0.2.9",
    "transformers==4.51.3",
    "torch==2.13.0",
    "peft==0.13.2",  # the last whose tables AutoGPTQ can import
    "accelerate==1.15.0",
    "datasets==5.0.1",
    "numpy==2.3.5",
    "safetensors==0.8.0",
)
"""Pinned further than elsewhere: nobody mends these libraries when one of theirs moves on."""

_TOKENIZER = ("tokenizer", "special_tokens_map", "added_tokens", "vocab", "merges", "spiece", "chat_template")


def older(config: Json) -> Json:
    """A config.json of transformers 5 in the words of transformers 4, which would pass over the new ones and take its defaults.

    Unsupported names what has no old word: rotary settings by layer type."""
    config = dict(config)
    rope = config.pop("rope_parameters", None)
    if rope is not None:
        if "rope_theta" not in rope:
            raise Unsupported("its rotary embedding differs by layer, which this library's transformers cannot be told")
        rope = dict(rope)
        config["rope_theta"] = rope.pop("rope_theta")
        if rope.get("rope_type", "default") != "default":
            config["rope_scaling"] = rope
    if "dtype" in config:
        config["torch_dtype"] = config.pop("dtype")
    return config


@contextmanager
def older_source(request: QuantizeRequest) -> Iterator[QuantizeRequest]:
    """Inside, the request with a source folder that transformers 4 reads as transformers 5 reads the real one: links, and a
    config in the old words."""
    with tempfile.TemporaryDirectory(prefix="source-", dir=request.out_dir) as name:
        folder = Path(name)
        for path in request.model_dir.iterdir():
            if path.is_file() and path.suffix in {".json", ".safetensors", ".txt", ".model"} and path.name != "config.json":
                (folder / path.name).symlink_to(path.resolve())
        config = json.loads((request.model_dir / "config.json").read_text(encoding="utf-8"))
        (folder / "config.json").write_text(json.dumps(older(config)), encoding="utf-8")
        yield replace(request, model_dir=folder)


def settle(request: QuantizeRequest, source_dir: Path, written: Path, quantization: Json) -> None:
    """The library's checkpoint in `written` as the artifact: its packed tensors, all others in the source's dtype (and with the
    source's bits, where the library did not change them), the source's config with the entry `quantization`; and the reload check
    from this project's own reading of the packed weights.

    `request` is that of `older_source`, `source_dir` the real source."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    source = {t.name: t.file for t in safetensors_file.stored(request.model_dir)}
    packed = gptq_file.packed_layers(written)
    if not packed:
        raise Unsupported("the library packed no layer of this model; choose another method")
    index: dict[str, str] = {}
    files = sorted(written.glob("*.safetensors"))
    for number, path in enumerate(files, 1):
        name = "model.safetensors" if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
        state = {}
        with safe_open(str(path), framework="pt", device="cpu") as file:
            for tensor in (t.name for t in safetensors_file.header(path)):
                layer, _, part = tensor.rpartition(".")
                theirs = file.get_tensor(tensor)
                if layer in packed and part != "bias":
                    state[tensor] = theirs
                elif tensor in source:  # a tied head and biases of zeros are not: those libraries store them all the same
                    with safe_open(str(source[tensor]), framework="pt", device="cpu") as original:
                        ours = original.get_tensor(tensor)
                    same = torch.equal(ours.to(theirs.dtype), theirs)  # but for the library's dtype; AWQ scales norms
                    state[tensor] = ours if same else theirs.to(ours.dtype)
        save_file(state, str(request.out_dir / name), metadata={"format": "pt"})
        index.update(dict.fromkeys(state, name))
    if len(files) > 1:
        text = json.dumps({"metadata": {}, "weight_map": index})
        (request.out_dir / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    shutil.rmtree(written)
    newer(request.out_dir, source_dir, quantization)
    for path in source_dir.iterdir():  # the loader wants the tokenizer beside the weights
        if path.is_file() and path.name.startswith(_TOKENIZER):
            shutil.copyfile(path, request.out_dir / path.name)
    count = sum(t.bits for t in safetensors_file.stored(request.model_dir)) // 16
    state = gptq_file.dequantize(request.out_dir, build.reference_dtype(count))
    reload.write_dense(request, state, "the packed weights, unpacked and run in float32")


def newer(out_dir: Path, model_dir: Path, quantization: Json) -> None:
    """The artifact's config for its loader: the source's own words, which transformers 5 wrote or can read."""
    config = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)
    config.update(dtype="bfloat16", quantization_config=quantization)
    (out_dir / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    (out_dir / "quantize_config.json").write_text(json.dumps(quantization, indent=2), encoding="utf-8")


def unsupported(shape: ModelShape | None, known: frozenset[str], library: str) -> str | None:
    """Why the library cannot take a model's architecture, or None."""
    kind = None if shape is None else shape.config.get("model_type")
    if kind is not None and kind not in known:
        return f"{library} was given up before {kind} came; it takes {', '.join(sorted(known))}"
    return None
