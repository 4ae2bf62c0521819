"""A transformers causal LM as a stateful OpenVINO model, as OpenVINO's own tools (GenAI, Model Server) read it.

Inputs `input_ids`, `attention_mask` [batch, past + tokens], `position_ids`, `beam_idx` [batch] (which row of the cache each row
goes on from); output `logits` at all positions; keys and values are the model's state. Made with OpenVINO's public API from the
traced model: optimum-intel has no release that takes transformers 5.

Refused: models whose attention is not plain causal attention over keys and values at every distance. The mask is written here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from harness.formats import attention_rules
from harness.formats.config_json import ModelConfig, integer, text_part, words

if TYPE_CHECKING:
    import openvino as ov
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel


def refusal(config: ModelConfig) -> str | None:
    """Why a model with this configuration is not exported, or None. Takes one that transformers has loaded or that
    `attention_rules.complete` has filled: a window may be a default that config.json does not name."""
    text = text_part(config)
    rules = attention_rules.of(config)
    context = integer(text, "max_position_embeddings") or float("inf")
    for name, tokens in rules.windows.items():
        if tokens < context:  # a wider one never acts
            return f"its layers attend to a sliding window ({name}: {tokens} tokens); the export writes a plain causal mask"
    other = set(words(text, "layer_types")) - attention_rules.PLAIN_LAYERS
    if other:
        return f"it has layers that are no plain attention ({', '.join(sorted(other))}); the export knows plain ones"
    if rules.alibi:
        return "its positions are ALiBi, which the export's mask does not carry"
    if rules.rope:
        return f"its rotary positions ({rules.rope}) change with the length of the input, and a traced graph has one of them"
    return None


def export(model: PreTrainedModel) -> ov.Model:
    """The `openvino.Model` of a float32 causal LM in eval mode. Weights are shared with `model` until it is saved."""
    import numpy as np
    import openvino as ov
    import torch
    from openvino import opset13 as ops
    from openvino.passes import MakeStateful, Manager

    config = model.config.get_text_config()
    layers, heads = int(config.num_hidden_layers), int(config.num_attention_heads)
    groups = int(getattr(config, "num_key_value_heads", None) or heads)
    width = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    rows, past, new = 2, 3, 4  # of the example that is traced; every one of them is dynamic afterwards
    example = [
        torch.ones(rows, new, dtype=torch.long),
        torch.ones(rows, past + new, dtype=torch.long),
        torch.arange(past, past + new)[None].expand(rows, new),
        torch.arange(rows),
        *(torch.randn(rows, groups, past, width) for _ in range(2 * layers)),
    ]
    with torch.no_grad():
        graph = ov.convert_model(_traced(model, layers), example_input=tuple(example))
    held = [f"{n}.{part}" for n in range(layers) for part in ("key", "value")]
    names = ["input_ids", "attention_mask", "position_ids", "beam_idx", *(f"past_key_values.{h}" for h in held)]
    shapes = [[-1, -1]] * 3 + [[-1]] + [[-1, groups, -1, width]] * (2 * layers)
    for port, name, shape in zip(graph.inputs, names, shapes, strict=True):
        port.get_tensor().set_names({name})
        port.get_node().set_friendly_name(name)
        port.get_node().set_partial_shape(ov.PartialShape(shape))
        if name == "beam_idx":
            port.get_node().set_element_type(ov.Type.i32)
    for port, name in zip(graph.outputs, ["logits", *(f"present.{h}" for h in held)], strict=True):
        port.get_tensor().set_names({name})
    graph.validate_nodes_and_infer_types()
    manager = Manager()
    manager.register_pass(MakeStateful({f"past_key_values.{h}": f"present.{h}" for h in held}))
    manager.run_passes(graph)
    # An empty state has as many rows as the first input: without this it would have none, and no row could be picked from it.
    batch = ops.gather(
        ops.shape_of(graph.input("input_ids"), output_type="i64"),
        ops.constant([0], dtype=np.int64),
        ops.constant(0, dtype=np.int64),
    )
    for node in graph.get_ops():
        if node.get_type_name() == "ReadValue":
            shape = ops.concat([batch, ops.constant([groups, 0, width], dtype=np.int64)], axis=0)
            node.set_arguments([ops.broadcast(ops.constant(0.0, dtype=np.float32), shape)])
    _keep_frequencies(graph, {name: t for name, t in model.named_buffers() if name.endswith(".inv_freq")})
    graph.validate_nodes_and_infer_types()
    return graph


def _keep_frequencies(graph: ov.Model, buffers: Mapping[str, Tensor]) -> None:
    """Rotary frequencies as 30-bit integers and powers of two. Saving in float16 rounds every float of the graph, and a
    frequency of 0.7 that is off by 2^-12 of itself turns position 4000 by most of a radian. What the runtime computes from is
    float32 again."""
    import numpy as np
    from openvino import opset13 as ops

    for name, buffer in buffers.items():
        wanted = buffer.float().numpy().reshape(-1)
        nodes = [
            node
            for node in graph.get_ops()
            if node.get_type_name() == "Constant"
            and node.get_output_size() == 1
            and int(np.prod(list(node.get_output_shape(0)))) == wanted.size
            and np.array_equal(np.asarray(node.data).reshape(-1), wanted)
        ]
        if not nodes or not (np.abs(wanted) <= 1).all():
            raise RuntimeError(f"the rotary frequencies {name} are not in the exported graph as they are in the model")
        for node in nodes:
            codes = np.rint(wanted.astype(np.float64) * 2.0**30).astype(np.int32).reshape(list(node.get_output_shape(0)))
            root = ops.constant(2.0**-15, dtype=np.float32)  # 2^-30 itself is no float16
            kept = ops.multiply(ops.multiply(ops.convert(ops.constant(codes), "f32"), root), root)
            for target in node.output(0).get_target_inputs():
                target.replace_source_output(kept.output(0))


def _traced(model: PreTrainedModel, layers: int) -> torch.nn.Module:
    """A module around `model` whose inputs and outputs are tensors only. Its name for the model, `m`, is in the IR's names."""
    import torch
    from transformers.cache_utils import Cache, DynamicLayer

    class GivenLayer(DynamicLayer):
        """Keys and values that are given. Their length is never asked of them: the mask says it, and a graph that reads the
        length off the first layer's keys could not keep that layer's cache inside its attention."""

        length: int = 0

        def get_seq_length(self) -> int:
            return self.length

    class Traced(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.m = model

        def forward(
            self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, beam_idx: Tensor, *past: Tensor
        ) -> tuple[Tensor, ...]:
            new, total = input_ids.shape[1], attention_mask.shape[1]
            held: list[GivenLayer] = []
            for number in range(layers):
                keys, values = (past[2 * number + part].index_select(0, beam_idx) for part in (0, 1))
                layer = GivenLayer()  # type: ignore[no-untyped-call]  # transformers' own
                layer.lazy_initialization(keys, values)
                layer.keys, layer.values, layer.length = keys, values, total - new
                held.append(layer)
            cache = Cache(layers=list(held))
            seen = torch.arange(total)[None, :] <= torch.arange(total - new, total)[:, None]
            seen = seen[None, None] & (attention_mask[:, None, None, :] > 0)
            mask = torch.zeros(seen.shape, dtype=torch.float32).masked_fill(~seen, torch.finfo(torch.float32).min)
            output = self.m(
                input_ids=input_ids, attention_mask=mask, position_ids=position_ids, past_key_values=cache, use_cache=True
            )
            return (output.logits, *(t for layer in held for t in (layer.keys, layer.values)))

    return Traced().eval()
