"""What autogptq and autoawq share: libraries of transformers 4, in one environment of their own, whose checkpoints the main
environment loads.

The two originals are no longer maintained. They quantize in the environment `originals`, with the last versions that worked
together; what they write, the GPTQ and AWQ formats, is loaded in the main environment through GPTQModel (see _gptqmodel.py), so
that they and their successors answer through the same kernels and differ by their weights alone.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from harness.artifact import ModelShape
from harness.errors import Unsupported
from harness.formats import config_json, gptq_file, quantization_config, safetensors_file
from harness.formats.config_json import ModelConfig
from harness.methods import _gptqmodel
from harness.methods.base import Kernel, Method, Option, QuantizeRequest
from harness.spec import Scheme

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


def older(config: ModelConfig) -> dict[str, object]:
    """A config.json of transformers 5 in the words of transformers 4, which would pass over the new ones and take its defaults.

    Unsupported names what has no old word: rotary settings by layer type."""
    old = dict(config)
    rope = old.pop("rope_parameters", None)
    if isinstance(rope, dict):
        if "rope_theta" not in rope:
            raise Unsupported("its rotary embedding differs by layer, which this library's transformers cannot be told")
        rope = dict(rope)
        old["rope_theta"] = rope.pop("rope_theta")
        if rope.get("rope_type", "default") != "default":
            old["rope_scaling"] = rope
    if "dtype" in old:
        old["torch_dtype"] = old.pop("dtype")
    return old


@contextmanager
def older_source(request: QuantizeRequest) -> Iterator[QuantizeRequest]:
    """Inside, the request with a source folder that transformers 4 reads as transformers 5 reads the real one: links, and a
    config in the old words."""
    with tempfile.TemporaryDirectory(prefix="source-", dir=request.out_dir) as name:
        folder = Path(name)
        for path in request.model_dir.iterdir():
            if path.is_file() and path.suffix in {".json", ".safetensors", ".txt", ".model"} and path.name != "config.json":
                (folder / path.name).symlink_to(path.resolve())
        config_json.write(older(config_json.read(request.model_dir)), folder)
        yield replace(request, model_dir=folder)


def write_artifact(request: QuantizeRequest, source_dir: Path, written: Path, quantization: ModelConfig) -> None:
    """Makes the artifact of the library's checkpoint in `written`: its packed tensors; all others in bfloat16 (the source's,
    where the library did not change them); the source's config with the entry `quantization`; and the reload check from this
    project's own reading of the packed weights.

    `request` is that of `older_source`, `source_dir` the real source."""
    import torch

    source = {entry.name: entry for entry in safetensors_file.stored(request.model_dir)}
    packed = gptq_file.packed_layers(written)
    if not packed:
        raise Unsupported("the library packed no layer of this model; choose another method")
    index: dict[str, str] = {}
    files = sorted(written.glob("*.safetensors"))
    for place, path in enumerate(files, 1):
        name = safetensors_file.MODEL if len(files) == 1 else f"model-{place:05d}-of-{len(files):05d}.safetensors"
        state = {}
        for entry in safetensors_file.header(path):
            layer, _, part = entry.name.rpartition(".")
            if layer in packed and part != "bias":
                state[entry.name] = safetensors_file.tensor(entry)
            elif entry.name in source:  # a tied head and biases of zeros are not: those libraries store them all the same
                theirs, ours = safetensors_file.tensor(entry), safetensors_file.tensor(source[entry.name])
                same = torch.equal(ours.to(theirs.dtype), theirs)  # but for the library's dtype; AWQ scales norms
                state[entry.name] = (ours if same else theirs).to(torch.bfloat16)
        safetensors_file.save(state, request.out_dir / name)
        index.update(dict.fromkeys(state, name))
    if len(files) > 1:
        text = json.dumps({"metadata": {}, "weight_map": index})
        (request.out_dir / safetensors_file.INDEX).write_text(text, encoding="utf-8")
    shutil.rmtree(written)
    newer(request.out_dir, source_dir, quantization)
    for path in source_dir.iterdir():  # the loader wants the tokenizer beside the weights
        if path.is_file() and path.name.startswith(_TOKENIZER):
            shutil.copyfile(path, request.out_dir / path.name)
    _gptqmodel.check_by_unpacking(request)


def newer(out_dir: Path, model_dir: Path, quantization: ModelConfig) -> None:
    """The artifact's config for its loader: the source's own words, which transformers 5 wrote or can read."""
    config = config_json.read(model_dir)
    config.pop("torch_dtype", None)
    config_json.write({**config, "dtype": "bfloat16", quantization_config.KEY: quantization}, out_dir)
    (out_dir / "quantize_config.json").write_text(json.dumps(quantization, indent=2), encoding="utf-8")


def row(
    *,
    name: str,
    title: str,
    library: str,
    bits: tuple[int, ...],
    options: Mapping[str, Option],
    quantize: Callable[[QuantizeRequest], None],
    supports: Callable[[Scheme, ModelShape | None, str], str | None],
    loaded_by: str,
    summary: str,
    source: str,
    kernel_cuda: Mapping[float, Kernel] = _gptqmodel.KERNEL_CUDA,
    folds: bool = False,
) -> Method:
    """A row whose `library` (an importable name) quantizes in the environment of the originals; `loaded_by` loads it."""
    main = _gptqmodel.row(
        name=name,
        version="2",
        title=title,
        bits=bits,
        options=options,
        quantize=quantize,
        supports=supports,
        kernel_cuda=kernel_cuda,
        folds=folds,
        summary=summary,
        source=source,
    )
    return replace(
        main,
        environment=ENVIRONMENT,
        requirements=REQUIREMENTS,
        extra=None,
        engines={},  # nobody has tried them
        loaded_by=loaded_by,
        modules=("torch", "transformers", library),
    )


def unsupported(shape: ModelShape | None, known: frozenset[str], library: str) -> str | None:
    """Why the library cannot take a model's architecture, or None."""
    kind = None if shape is None else shape.config.get("model_type")
    if kind is not None and kind not in known:
        return f"{library} was given up before {kind} came; it takes {', '.join(sorted(known))}"
    return None
