"""The reference model as a network: a Llama with tied embeddings, whose parameters have transformers' names.

With `ternary` the same network is trained for 1.58 bits (Ma et al. 2024, The Era of 1-bit LLMs, arXiv:2402.17764, section 2):
every linear layer but the head multiplies by -1, 0 or 1 and by one scale, and reads its inputs in 8 bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.reference.tokenizer import VOCABULARY

IGNORED = -100  # target of padding positions, as in torch's cross entropy


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Llama's hyper-parameters; hidden and intermediate are multiples of 256 so that every format's blocks fit."""

    vocabulary: int = VOCABULARY
    hidden: int = 256
    intermediate: int = 768
    layers: int = 5
    heads: int = 4
    context: int = 512
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    ternary: bool = False

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads


class Linear(nn.Module):
    def __init__(self, rows: int, columns: int, *, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(rows, columns) * scale)


def ternary(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix as -1, 0 and 1, and its one scale: the mean of its absolute values ("absmean", equations 1 to 3). Backwards the
    rounding is as if it were not there (straight-through), and the scale a constant."""
    scale = weight.detach().abs().mean().clamp(min=1e-5)
    steps = weight / scale
    return steps + (steps.round().clamp(-1, 1) - steps).detach(), scale


def in_8_bits(x: Tensor) -> tuple[Tensor, Tensor]:
    """Activations as whole numbers of 8 bits, and the scale of each token, which makes its largest 127; straight-through
    backwards. x: [..., inputs] -> [..., inputs] and [..., 1]."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = 127 / wide.detach().abs().amax(-1, keepdim=True).clamp(min=1e-5)
    steps = wide * scale
    return steps + (steps.round().clamp(-128, 127) - steps).detach(), scale


def project(x: Tensor, *layers: Linear, as_ternary: bool) -> Tensor:
    """The layers' outputs side by side, by one matrix product; each layer has a scale of its own where they are ternary. Whole
    numbers up to 128 are exact in bfloat16, so that training multiplies what is stored."""
    if not as_ternary:
        return F.linear(x, torch.cat([layer.weight for layer in layers]))
    pairs = [ternary(layer.weight) for layer in layers]
    levels, token_scale = in_8_bits(x)
    product = F.linear(levels, torch.cat([steps for steps, _ in pairs])).to(token_scale.dtype)
    scale = torch.cat([scale.expand(steps.shape[0]) for steps, scale in pairs])
    return (product * scale / token_scale).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        size, scale = shape.hidden, shape.hidden**-0.5
        self.heads, self.ternary = shape.heads, shape.ternary
        self.q_proj = Linear(size, size, scale=scale)
        self.k_proj = Linear(size, size, scale=scale)
        self.v_proj = Linear(size, size, scale=scale)
        self.o_proj = Linear(size, size, scale=scale / math.sqrt(2 * shape.layers))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x: [rows, tokens, hidden]; cos, sin: [tokens, head size]."""
        rows, tokens, size = x.shape
        fused = project(x, self.q_proj, self.k_proj, self.v_proj, as_ternary=self.ternary)
        q, k, v = (part.view(rows, tokens, self.heads, -1).transpose(1, 2) for part in fused.split(size, -1))
        q, k = _rotate(q, cos, sin).to(v.dtype), _rotate(k, cos, sin).to(v.dtype)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return project(y.transpose(1, 2).reshape(rows, tokens, size), self.o_proj, as_ternary=self.ternary)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


class Mlp(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        inner, self.ternary = shape.intermediate, shape.ternary
        self.gate_proj = Linear(inner, shape.hidden, scale=shape.hidden**-0.5)
        self.up_proj = Linear(inner, shape.hidden, scale=shape.hidden**-0.5)
        self.down_proj = Linear(shape.hidden, inner, scale=inner**-0.5 / math.sqrt(2 * shape.layers))

    def forward(self, x: Tensor) -> Tensor:
        gate, up = project(x, self.gate_proj, self.up_proj, as_ternary=self.ternary).chunk(2, -1)
        return project(F.silu(gate) * up, self.down_proj, as_ternary=self.ternary)


class Norm(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape.hidden))
        self.eps = shape.norm_eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = Mlp(shape)
        self.input_layernorm = Norm(shape)
        self.post_attention_layernorm = Norm(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + cast(Tensor, self.mlp(self.post_attention_layernorm(x)))


class Backbone(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = Linear(shape.vocabulary, shape.hidden, scale=0.02)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = Norm(shape)


class ReferenceModel(nn.Module):
    """Llama with tied embeddings; `state_dict` has transformers' names."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Backbone(shape)

    def logits(self, tokens: Tensor) -> Tensor:
        """tokens: [rows, length] -> [rows, length, vocabulary]."""
        shape = self.shape
        step = torch.arange(0, shape.head_size, 2, device=tokens.device).float() / shape.head_size
        place = torch.arange(tokens.shape[1], device=tokens.device).float()
        angle = torch.outer(place, shape.rope_theta**-step)
        angle = torch.cat([angle, angle], -1)
        cos, sin = angle.cos(), angle.sin()
        x = F.embedding(tokens, self.model.embed_tokens.weight)
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        return F.linear(self.model.norm(x), self.model.embed_tokens.weight)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean negative log-likelihood in nats over the targets that are not ignored."""
        logits = self.logits(tokens).float()
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1), ignore_index=IGNORED)
