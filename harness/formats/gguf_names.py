"""Names and orders of a decoder's tensors: transformers' on one side, GGUF's on the other.

llama.cpp rotates neighbouring pairs for Llama and Mistral, where transformers rotates halves, so the rows of their q and k stand
in another order (`interleaved`, `halved`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.errors import Unsupported

if TYPE_CHECKING:
    from torch import Tensor

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
    source, part = source_name(name), name.split(".")
    if source is None or len(part) != 4 or part[3] != "weight" or part[2].endswith("norm"):
        return None
    return source.removesuffix(".weight")


def interleaved(weight: Tensor, heads: int) -> Tensor:
    """Rows of a q or k projection [heads x size, ...] (or its bias): rows i and i + size/2 of each head become neighbours."""
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def halved(weight: Tensor, heads: int) -> Tensor:
    """Inverse of `interleaved`."""
    return weight.reshape(heads, -1, 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)
