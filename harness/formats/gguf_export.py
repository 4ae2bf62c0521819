"""A transformers checkpoint as an unquantized GGUF file, through the `gguf` package's writer.

Offered: Llama, Mistral, Qwen2 and Qwen3. Everything else is refused with the reason before anything is written (`refusal`),
because a file with one wrong convention loads and answers garbage. The conventions that matter here: llama.cpp rotates
neighbouring pairs for Llama and Mistral, where transformers rotates halves, so the rows of their q and k are reordered
(`interleaved`); norms and biases are float32; a tied head is not stored; Llama-3's frequencies are a tensor of divisors.

The tokenizer goes into the file only where llama.cpp then gives the same ids as the source's own tokenizer on a sample of
text; else the file says that it has none, and can be measured (ids always come from the source's tokenizer) but not served.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import Unsupported
from harness.formats import safetensors_file
from harness.spec import Json

ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
"""transformers' class -> llama.cpp's name of the architecture."""

_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER_BACK = {theirs: ours for ours, theirs in _LAYER.items()}
_OUTER_BACK = {theirs: ours for ours, theirs in _OUTER.items()}

SAMPLE = (
    "The quick brown fox jumps over 13 lazy dogs; it's 1999, isn't it?\n\n\tIndented  text -- "
    "na\u00efve caf\u00e9, \u6771\u4eac, \U0001f642 "
    'and {"a": [1, 2.5], "b": null}\r\nWE\'LL see \'RE "quoted" x^2 = 3.14159; def f(x):\n    return x  # done\n\n\n  end '
)
"""What both tokenizers are asked: words, contractions, numbers, runs of spaces and newlines, other scripts, code."""


def gguf_name(name: str) -> str | None:
    """GGUF's name of a source tensor; None for one that is not stored (derived buffers). Unsupported for an unknown one."""
    stem, _, kind = name.rpartition(".")
    parts = stem.split(".")
    if name.endswith("rotary_emb.inv_freq"):
        return None
    if stem in _OUTER_BACK:
        return f"{_OUTER_BACK[stem]}.{kind}"
    if parts[:2] == ["model", "layers"] and len(parts) > 3 and parts[2].isdigit() and ".".join(parts[3:]) in _LAYER_BACK:
        return f"blk.{parts[2]}.{_LAYER_BACK['.'.join(parts[3:])]}.{kind}"
    raise Unsupported(f"the source holds the tensor {name}, which the conversion to GGUF has no place for")


def source_name(name: str) -> str | None:
    """The source's name of a GGUF tensor; None for one that the source does not store (Llama-3's divisors of frequencies)."""
    stem, _, kind = name.rpartition(".")
    parts = stem.split(".")
    if stem in _OUTER:
        return f"{_OUTER[stem]}.{kind}"
    if parts[0] == "blk" and parts[2] in _LAYER:
        return f"model.layers.{parts[1]}.{_LAYER[parts[2]]}.{kind}"
    return None


def linear(name: str) -> str | None:
    """The source's name of the decoder linear whose weight a GGUF tensor is, or None."""
    found = source_name(name)
    part = name.split(".")
    if found is None or len(part) != 4 or part[3] != "weight" or part[2].endswith("norm"):
        return None
    return found.removesuffix(".weight")


def interleaved(weight: Any, heads: int) -> Any:
    """Rows of a q or k projection [heads x size, ...] (or its bias): rows i and i + size/2 of each head become neighbours."""
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def halved(weight: Any, heads: int) -> Any:
    """Inverse of `interleaved`."""
    return weight.reshape(heads, -1, 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def rotated(config: Mapping[str, Json], name: str) -> int:
    """Heads whose rows are reordered in the source tensor `name`, 0 where none are."""
    if ARCHITECTURES.get(architecture(config)) != "llama" or not name.endswith((".weight", ".bias")):
        return 0
    layer = name.rpartition(".")[0]
    heads = int(config["num_attention_heads"])
    if layer.endswith("self_attn.q_proj"):
        return heads
    return int(config.get("num_key_value_heads") or heads) if layer.endswith("self_attn.k_proj") else 0


def complete_config(model_dir: Path) -> dict[str, Json]:
    """The model's configuration with transformers' defaults filled in: files leave out what is usual."""
    from transformers import AutoConfig

    found: dict[str, Json] = AutoConfig.from_pretrained(str(model_dir), trust_remote_code=False).to_dict()
    return found


def architecture(config: Mapping[str, Json]) -> str:
    return str((config.get("architectures") or ["?"])[0])


def rope(config: Mapping[str, Json]) -> dict[str, Json]:
    """The rotary settings under one set of names, whichever version of transformers wrote the configuration."""
    found: dict[str, Json] = {"rope_theta": config.get("rope_theta", 10000.0), "rope_type": "default"}
    for key in ("rope_scaling", "rope_parameters"):
        given = config.get(key)
        if isinstance(given, dict):
            found.update(given)
            nested = any(isinstance(value, dict) for value in given.values())
            found["rope_type"] = "layer type" if nested else given.get("rope_type") or given.get("type") or "default"
    return found


def refusal(config: Mapping[str, Json]) -> str | None:
    """Why this model cannot become a GGUF file here, or None. Takes a configuration that names its architecture."""
    name = architecture(config)
    if name not in ARCHITECTURES:
        return f"{name} is not among the architectures that the conversion to GGUF knows: {', '.join(ARCHITECTURES)}"
    act = config.get("hidden_act", "silu")
    if act not in ("silu", "swish"):
        return f"its activation is {act}, where llama.cpp's {ARCHITECTURES[name]} has silu"
    settings = rope(config)
    if settings["rope_type"] not in ("default", "linear", "llama3"):
        return f"its rotary positions are scaled by {settings['rope_type']!r}; the conversion knows default, linear and llama3"
    if (settings.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0) != 1.0:
        return "only a part of each head is rotated, which llama.cpp's graph of this architecture does not have"
    if config.get("use_sliding_window") and config.get("sliding_window"):
        return "its layers attend to a sliding window, which llama.cpp's graph of this architecture does not have"
    if name == "Qwen3ForCausalLM" and config.get("attention_bias"):
        return "its attention has biases, which llama.cpp's graph of this architecture does not have"
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """A byte-level BPE tokenizer as GGUF stores it; `pre` names llama.cpp's rule that cuts text into words."""

    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    special: dict[str, int]
    add_bos: bool


def convert(model_dir: Path, target: Path, *, dtype: str | None, same_ids: Callable[[Path, list[int]], bool]) -> dict[str, Json]:
    """Writes the checkpoint in `model_dir` to `target`, one tensor in memory at a time; returns facts (dtype, tokenizer).

    `dtype` of the matrices: F32, F16 or BF16; None takes one that loses nothing. `same_ids(file, ids)` says whether llama.cpp
    reads the vocabulary in `file` and gives `ids` for `SAMPLE`. Raises Unsupported for what cannot be converted faithfully.
    """
    from transformers import AutoTokenizer

    config = complete_config(model_dir)
    why = refusal(config)
    if why is not None:
        raise Unsupported(why)
    stored = {t.name: t for path in safetensors_file.weight_files(model_dir) for t in safetensors_file.header(path)}
    names = _names(config, stored)
    if dtype is None:
        kinds = {stored[name].dtype for name in names.values()}
        dtype = kinds.pop() if len(kinds) == 1 and kinds <= {"F16", "BF16"} else "F32"
    rows = stored["model.embed_tokens.weight"].shape[0]
    tokenizer = AutoTokenizer.from_pretrained(str(model_dir), trust_remote_code=False)
    vocabulary = _checked_vocabulary(tokenizer, config, rows, target, same_ids)
    writer = _writer(target, config, rows, vocabulary, dtype)
    _write_tensors(writer, config, names, stored, dtype)
    embedded = not isinstance(vocabulary, str)
    return {"dtype": dtype, "tokenizer": "embedded" if embedded else f"not embedded: {vocabulary}"}


def _names(config: Mapping[str, Json], stored: Mapping[str, safetensors_file.Stored]) -> dict[str, str]:
    """GGUF name -> source name of every tensor that is written. A head that is tied is not."""
    found = {}
    for name in stored:
        ours = gguf_name(name)
        if ours is not None and not (name == "lm_head.weight" and config.get("tie_word_embeddings")):
            found[ours] = name
    return found


def _writer(target: Path, config: Mapping[str, Json], rows: int, vocabulary: Vocabulary | str, dtype: str) -> Any:
    """A `gguf.GGUFWriter` on `target` with all metadata."""
    import gguf

    heads = int(config["num_attention_heads"])
    head = int(config.get("head_dim") or config["hidden_size"] // heads)
    context = int(config["max_position_embeddings"])
    if config.get("sliding_window") and architecture(config) == "MistralForCausalLM":
        context = min(context, int(config["sliding_window"]))  # beyond it the two would attend differently
    settings = rope(config)
    writer = gguf.GGUFWriter(str(target), ARCHITECTURES[architecture(config)])
    writer.add_file_type({"F32": 0, "F16": 1, "BF16": 32}[dtype])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(context)
    writer.add_embedding_length(int(config["hidden_size"]))
    writer.add_block_count(int(config["num_hidden_layers"]))
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_head_count(heads)
    writer.add_head_count_kv(int(config.get("num_key_value_heads") or heads))
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(float(config.get("rms_norm_eps", 1e-6)))
    writer.add_rope_freq_base(float(settings["rope_theta"]))
    writer.add_rope_dimension_count(head)
    writer.add_vocab_size(rows)
    if settings["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(settings["factor"]))
    _add_vocabulary(writer, vocabulary)
    return writer


def _write_tensors(
    writer: Any, config: Mapping[str, Json], names: Mapping[str, str], stored: Mapping[str, safetensors_file.Stored], dtype: str
) -> None:
    import gguf
    import torch
    from safetensors import safe_open

    wide = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[dtype]
    size = 4 if dtype == "F32" else 2
    factors = _frequency_divisors(config)
    if factors is not None:
        writer.add_tensor_info("rope_freqs.weight", [len(factors)], None, 4 * len(factors), gguf.GGMLQuantizationType.F32)
    for ours, name in names.items():
        shape = stored[name].shape
        flat = len(shape) == 1
        kind = gguf.GGMLQuantizationType["F32" if flat else dtype]
        writer.add_tensor_info(ours, list(shape), None, math.prod(shape) * (4 if flat else size), kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if factors is not None:
            writer.write_tensor_data(torch.tensor(factors, dtype=torch.float32).numpy())
        for name in names.values():
            with safe_open(str(stored[name].file), framework="pt", device="cpu") as file:
                tensor = file.get_tensor(name)
            heads = rotated(config, name)
            if heads:
                tensor = interleaved(tensor, heads)
            cast = tensor.to(torch.float32 if tensor.dim() == 1 else wide).contiguous()
            if bool((torch.isfinite(tensor) & ~torch.isfinite(cast)).any()):
                raise Unsupported(f"{name} holds values beyond the range of {dtype}; choose type BF16")
            writer.write_tensor_data(cast.reshape(-1).view(torch.uint8).numpy())
    finally:
        writer.close()


def _frequency_divisors(config: Mapping[str, Json]) -> list[float] | None:
    """Llama-3's scaling of the rotary frequencies as divisors (transformers' `_compute_llama3_parameters`), or None."""
    settings = rope(config)
    if settings["rope_type"] != "llama3":
        return None
    head = int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])
    factor, low, high = (float(settings[name]) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    before = float(settings["original_max_position_embeddings"])
    found = []
    for i in range(0, head, 2):
        turns = before / (2 * math.pi * float(settings["rope_theta"]) ** (i / head))  # within the original context
        smooth = min(1.0, max(0.0, (turns - low) / (high - low)))
        found.append(1 / ((1 - smooth) / factor + smooth))
    return found


# ---------------------------------------------------------------------- the tokenizer

_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PRE: dict[tuple[tuple[str, Json], ...], str] = {
    (("ByteLevel", True),): "gpt-2",
    (("Digits", True), ("ByteLevel", True)): "smollm",
    (("Split", _LLAMA3_SPLIT), ("ByteLevel", False)): "llama-bpe",
    (("Split", _LLAMA3_SPLIT.replace("{1,3}", "")), ("ByteLevel", False)): "qwen2",
}
"""The steps that cut text into words, as tokenizers describes them -> llama.cpp's name of that rule."""

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5


def _checked_vocabulary(
    tokenizer: Any, config: Mapping[str, Json], rows: int, target: Path, same_ids: Callable[[Path, list[int]], bool]
) -> Vocabulary | str:
    """The tokenizer as GGUF stores it, once llama.cpp has been seen to give its ids; else why the file has none."""
    found = vocabulary(tokenizer, rows)
    if isinstance(found, str):
        return found
    trial = target.with_name("vocabulary.gguf")
    writer = _writer(trial, config, rows, found, "F32")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    try:
        same = same_ids(trial, list(tokenizer(SAMPLE, add_special_tokens=False)["input_ids"]))
    finally:
        trial.unlink()
    return found if same else f"llama.cpp's {found.pre!r} rule gives other ids than the source's tokenizer"


def vocabulary(tokenizer: Any, rows: int) -> Vocabulary | str:
    """A byte-level BPE tokenizer as GGUF stores it, or why it cannot be."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return "it is no tokenizer of the tokenizers library"
    rules = json.loads(backend.to_str())
    model = rules["model"]
    steps = tuple(_steps(rules.get("pre_tokenizer")))
    if model.get("type") != "BPE" or model.get("byte_fallback") or steps not in _PRE:
        return "only byte-level BPE with a rule of GPT-2, SmolLM, Llama 3 or Qwen 2 is written"
    added = {int(token["id"]): token for token in rules.get("added_tokens", ())}
    by_id = {index: token for token, index in model["vocab"].items()} | {i: token["content"] for i, token in added.items()}
    if max(by_id) >= rows:
        return f"it has ids up to {max(by_id)}, and the embedding {rows} rows"
    types = [
        (_CONTROL if added[i]["special"] else _USER_DEFINED) if i in added else _NORMAL if i in by_id else _UNUSED
        for i in range(rows)
    ]
    bos = tokenizer.bos_token_id
    first: list[int] = tokenizer("a")["input_ids"][:1]
    special = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "unk", "pad")}
    return Vocabulary(
        pre=_PRE[steps],
        tokens=[by_id.get(i, f"[PAD{i}]") for i in range(rows)],
        types=types,
        merges=[merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]],
        special={name: int(index) for name, index in special.items() if index is not None},
        add_bos=bos is not None and first == [bos],
    )


def _steps(node: Json) -> Iterator[tuple[str, Json]]:
    if not isinstance(node, dict):
        return
    kind = node.get("type")
    if kind == "Sequence":
        for inner in node["pretokenizers"]:
            yield from _steps(inner)
    elif kind == "Split":
        yield kind, node["pattern"].get("Regex") if node.get("behavior") == "Isolated" and not node.get("invert") else None
    elif kind == "Digits":
        yield kind, node.get("individual_digits")
    elif kind == "ByteLevel":
        yield kind, None if node.get("add_prefix_space") else node.get("use_regex", True)
    else:
        yield str(kind), None


def _add_vocabulary(writer: Any, found: Vocabulary | str) -> None:
    if isinstance(found, str):
        writer.add_tokenizer_model("no_vocab")
        return
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(found.pre)
    writer.add_token_list(found.tokens)
    writer.add_token_types(found.types)
    writer.add_token_merges(found.merges)
    for name, index in found.special.items():
        getattr(writer, f"add_{name}_token_id")(index)
    writer.add_add_bos_token(found.add_bos)
