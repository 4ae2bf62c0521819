"""A transformers checkpoint as an unquantized GGUF file, through the `gguf` package's writer.

Offered: Llama, Mistral, Qwen2 and Qwen3. Everything else is refused with the reason before anything is written (`refusal`),
because a file with one wrong convention loads and answers garbage. The conventions that matter here: the order of rows
(gguf_names.py); norms and biases are float32; a tied head is not stored; Llama-3's frequencies are a tensor of divisors.

The tokenizer goes into the file only where llama.cpp then gives the same ids as the source's own tokenizer on a sample of
text; else the file says that it has none, and can be measured (ids always come from the source's tokenizer) but not served.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import Unsupported
from harness.formats import gguf_vocabulary, safetensors_file
from harness.formats.config_json import ModelConfig, architecture, integer, mapping, number
from harness.formats.gguf_names import gguf_name, interleaved
from harness.formats.gguf_vocabulary import Vocabulary
from harness.formats.safetensors_file import HeaderEntry

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedTokenizerBase

ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
"""transformers' class -> llama.cpp's name of the architecture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """Rotary positions: `kind` is transformers' rope_type; the last four belong to kinds that scale the frequencies."""

    kind: str
    theta: float
    factor: float
    low_frequency: float
    high_frequency: float
    original_context: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """What a model's complete configuration says of it, as far as a GGUF file repeats it. `architecture` is llama.cpp's name;
    `head` is the width of one attention head."""

    architecture: str
    hidden: int
    layers: int
    feed_forward: int
    heads: int
    kv_heads: int
    head: int
    context: int
    norm_epsilon: float
    tied: bool
    rope: Rope

    def rotated(self, name: str) -> int:
        """Heads whose rows are reordered in the source tensor `name`, 0 where none are."""
        if self.architecture != "llama" or not name.endswith((".weight", ".bias")):
            return 0
        layer = name.rpartition(".")[0]
        if layer.endswith("self_attn.q_proj"):
            return self.heads
        return self.kv_heads if layer.endswith("self_attn.k_proj") else 0


def decoder(config: ModelConfig) -> Decoder:
    """Reads a complete configuration, one with transformers' defaults filled in."""
    name = architecture(config)
    heads, hidden = integer(config, "num_attention_heads"), integer(config, "hidden_size")
    context = integer(config, "max_position_embeddings")
    if config.get("sliding_window") and name == "MistralForCausalLM":
        context = min(context, integer(config, "sliding_window"))  # beyond it the two would attend differently
    return Decoder(
        architecture=ARCHITECTURES[name],
        hidden=hidden,
        layers=integer(config, "num_hidden_layers"),
        feed_forward=integer(config, "intermediate_size"),
        heads=heads,
        kv_heads=integer(config, "num_key_value_heads", default=heads),
        head=integer(config, "head_dim", default=hidden // heads),
        context=context,
        norm_epsilon=number(config, "rms_norm_eps", default=1e-6),
        tied=bool(config.get("tie_word_embeddings")),
        rope=_rope(config),
    )


def decoder_of(model_dir: Path) -> Decoder:
    """The decoder in `model_dir`. Raises Unsupported for a model that cannot become a GGUF file here."""
    from transformers import AutoConfig

    config: ModelConfig = AutoConfig.from_pretrained(str(model_dir), trust_remote_code=False).to_dict()
    why = refusal(config)
    if why is not None:
        raise Unsupported(why)
    return decoder(config)


def _rope_settings(config: ModelConfig) -> ModelConfig:
    """The rotary settings under one set of names, whichever version of transformers wrote the configuration."""
    settings: dict[str, object] = {"rope_theta": config.get("rope_theta", 10000.0), "rope_type": "default"}
    for key in ("rope_scaling", "rope_parameters"):
        given = mapping(config, key)
        if given:
            settings.update(given)
            nested = any(isinstance(value, dict) for value in given.values())
            settings["rope_type"] = "layer type" if nested else given.get("rope_type") or given.get("type") or "default"
    return settings


def _rope(config: ModelConfig) -> Rope:
    settings = _rope_settings(config)
    return Rope(
        kind=str(settings["rope_type"]),
        theta=number(settings, "rope_theta"),
        factor=number(settings, "factor"),
        low_frequency=number(settings, "low_freq_factor"),
        high_frequency=number(settings, "high_freq_factor"),
        original_context=number(settings, "original_max_position_embeddings"),
    )


def refusal(config: ModelConfig) -> str | None:
    """Why this model cannot become a GGUF file here, or None. Takes a configuration that names its architecture."""
    name = architecture(config)
    if name not in ARCHITECTURES:
        return f"{name} is not among the architectures that the conversion to GGUF knows: {', '.join(ARCHITECTURES)}"
    act = config.get("hidden_act", "silu")
    if act not in ("silu", "swish"):
        return f"its activation is {act}, where llama.cpp's {ARCHITECTURES[name]} has silu"
    settings = _rope_settings(config)
    if settings["rope_type"] not in ("default", "linear", "llama3"):
        return f"its rotary positions are scaled by {settings['rope_type']!r}; the conversion knows default, linear and llama3"
    if settings["rope_type"] == "llama3" and ARCHITECTURES[name] != "llama":
        return f"its rotary positions are scaled by 'llama3', which llama.cpp reads for llama and not for {ARCHITECTURES[name]}"
    if (settings.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0) != 1.0:
        return "only a part of each head is rotated, which llama.cpp's graph of this architecture does not have"
    if config.get("use_sliding_window") and config.get("sliding_window"):
        return "its layers attend to a sliding window, which llama.cpp's graph of this architecture does not have"
    if name == "Qwen3ForCausalLM" and config.get("attention_bias"):
        return "its attention has biases, which llama.cpp's graph of this architecture does not have"
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """What was written: the dtype of the matrices, and whether the file has a tokenizer (`embedded`, or why not)."""

    dtype: str
    tokenizer: str


def convert(model_dir: Path, target: Path, *, dtype: str | None, same_ids: Callable[[Path, list[int]], bool]) -> Conversion:
    """Writes the checkpoint in `model_dir` to `target`, one tensor in memory at a time.

    `dtype` of the matrices: F32, F16 or BF16; None takes one that loses nothing. `same_ids(file, ids)` says whether llama.cpp
    reads the vocabulary in `file` and gives `ids` for `gguf_vocabulary.SAMPLE`. Raises Unsupported for what cannot be converted
    faithfully.
    """
    from transformers import AutoTokenizer

    model = decoder_of(model_dir)
    stored = safetensors_file.checkpoint(model_dir)
    names = _names(model, stored)
    if dtype is None:
        kinds = {stored[name].dtype for name in names.values()}
        dtype = kinds.pop() if len(kinds) == 1 and kinds <= {"F16", "BF16"} else "F32"
    rows = stored["model.embed_tokens.weight"].shape[0]
    tokenizer = AutoTokenizer.from_pretrained(str(model_dir), trust_remote_code=False)
    vocabulary = _checked_vocabulary(tokenizer, model, rows, target, same_ids)
    writer = _writer(target, model, rows, vocabulary, dtype)
    _write_tensors(writer, model, {ours: stored[name] for ours, name in names.items()}, dtype)
    return Conversion(dtype=dtype, tokenizer=f"not embedded: {vocabulary}" if isinstance(vocabulary, str) else "embedded")


def _names(model: Decoder, stored: Mapping[str, HeaderEntry]) -> dict[str, str]:
    """GGUF name -> source name of every tensor that is written. A head that is tied is not."""
    names = {}
    for name in stored:
        ours = gguf_name(name)
        if ours is not None and not (name == "lm_head.weight" and model.tied):
            names[ours] = name
    return names


def _writer(target: Path, model: Decoder, rows: int, vocabulary: Vocabulary | str, dtype: str) -> GGUFWriter:
    """A writer on `target` that has been told all metadata."""
    import gguf

    writer = gguf.GGUFWriter(str(target), model.architecture)
    writer.add_file_type({"F32": 0, "F16": 1, "BF16": 32}[dtype])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(model.context)
    writer.add_embedding_length(model.hidden)
    writer.add_block_count(model.layers)
    writer.add_feed_forward_length(model.feed_forward)
    writer.add_head_count(model.heads)
    writer.add_head_count_kv(model.kv_heads)
    writer.add_key_length(model.head)
    writer.add_value_length(model.head)
    writer.add_layer_norm_rms_eps(model.norm_epsilon)
    writer.add_rope_freq_base(model.rope.theta)
    writer.add_rope_dimension_count(model.head)
    writer.add_vocab_size(rows)
    if model.rope.kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(model.rope.factor)
    gguf_vocabulary.add(writer, vocabulary)
    return writer


def _write_tensors(writer: GGUFWriter, model: Decoder, tensors: Mapping[str, HeaderEntry], dtype: str) -> None:
    """`tensors` by their GGUF names."""
    import gguf
    import torch

    wide = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[dtype]
    size = 4 if dtype == "F32" else 2
    divisors = _frequency_divisors(model)
    if divisors is not None:
        writer.add_tensor_info("rope_freqs.weight", [len(divisors)], None, 4 * len(divisors), gguf.GGMLQuantizationType.F32)
    for ours, entry in tensors.items():
        flat = len(entry.shape) == 1
        kind = gguf.GGMLQuantizationType["F32" if flat else dtype]
        writer.add_tensor_info(ours, list(entry.shape), None, entry.parameters * (4 if flat else size), kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if divisors is not None:
            writer.write_tensor_data(torch.tensor(divisors, dtype=torch.float32).numpy())
        for entry in tensors.values():
            tensor = safetensors_file.tensor(entry)
            heads = model.rotated(entry.name)
            if heads:
                tensor = interleaved(tensor, heads)
            cast = tensor.to(torch.float32 if tensor.dim() == 1 else wide).contiguous()
            if bool((torch.isfinite(tensor) & ~torch.isfinite(cast)).any()):
                raise Unsupported(f"{entry.name} holds values beyond the range of {dtype}; choose type BF16")
            writer.write_tensor_data(cast.reshape(-1).view(torch.uint8).numpy())
    finally:
        writer.close()


def _frequency_divisors(model: Decoder) -> list[float] | None:
    """Llama-3's scaling of the rotary frequencies as divisors (transformers' `_compute_llama3_parameters`), or None."""
    rope = model.rope
    if rope.kind != "llama3":
        return None
    divisors = []
    for i in range(0, model.head, 2):
        turns = rope.original_context / (2 * math.pi * rope.theta ** (i / model.head))  # within the original context
        smooth = min(1.0, max(0.0, (turns - rope.low_frequency) / (rope.high_frequency - rope.low_frequency)))
        divisors.append(1 / ((1 - smooth) / rope.factor + smooth))
    return divisors


def _checked_vocabulary(
    tokenizer: PreTrainedTokenizerBase, model: Decoder, rows: int, target: Path, same_ids: Callable[[Path, list[int]], bool]
) -> Vocabulary | str:
    """The tokenizer as GGUF stores it, once llama.cpp has been seen to give its ids; else why the file has none."""
    vocabulary = gguf_vocabulary.read(tokenizer, rows)
    if isinstance(vocabulary, str):
        return vocabulary
    trial = target.with_name("vocabulary.gguf")
    writer = _writer(trial, model, rows, vocabulary, "F32")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    try:
        same = same_ids(trial, list(tokenizer(gguf_vocabulary.SAMPLE, add_special_tokens=False)["input_ids"]))
    finally:
        trial.unlink()
    return vocabulary if same else f"llama.cpp's {vocabulary.pre!r} rule gives other ids than the source's tokenizer"
