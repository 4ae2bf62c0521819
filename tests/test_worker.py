"""What a child says beside its numbers: which layers ran on which kernel."""

from __future__ import annotations

from harness.artifact import LayerKernel
from harness.child.kernels import gathered, with_kernels
from harness.engines.base import EngineFacts
from harness.spec import Answer


def test_every_layer_is_stored_with_its_module_its_op_and_the_type_of_its_weights() -> None:
    def layer(name: str, dtype: str) -> LayerKernel:
        return LayerKernel(layer=name, module="QuantLinear", op="aten::int4", stored_dtype=dtype, dequantized=False)

    names = [f"model.layers.{i}.{part}" for i in (0, 1, 2, 4) for part in ("self_attn.q_proj", "mlp.down_proj")]
    kernels = tuple(layer(name, "int8" if name == "model.layers.4.mlp.down_proj" else "int32") for name in names)
    facts = EngineFacts(engine="transformers", device="cpu", kernels=kernels, simulated=False, resident_weight_bytes=1)
    engine = with_kernels(Answer(measurements=()), facts).facts["engine"]
    assert engine["kernels"] == {"QuantLinear · aten::int4 · int32": 7, "QuantLinear · aten::int4 · int8": 1}
    assert engine["layers"] == {
        "QuantLinear · aten::int4 · int32": ["model.layers.0-2,4.self_attn.q_proj", "model.layers.0-2.mlp.down_proj"],
        "QuantLinear · aten::int4 · int8": ["model.layers.4.mlp.down_proj"],
    }


def test_layers_are_gathered_over_every_number_in_their_names() -> None:
    experts = [f"model.layers.{i}.mlp.experts.{j}.up_proj" for i in range(3) for j in range(8)]
    assert gathered(experts) == ["model.layers.0-2.mlp.experts.0-7.up_proj"]
    assert gathered(["lm_head", "model.layers.3.x"]) == ["lm_head", "model.layers.3.x"]
    assert gathered([]) == []
