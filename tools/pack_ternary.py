"""Packs a ternary network that `harness.reference.train --ternary` has trained, as a BitNet checkpoint.

    python -m tools.pack_ternary DIR        # DIR/checkpoint.pt -> DIR/model

Every layer is compared with transformers' own reading of what was written, on the same inputs, and so are the answers of the
whole.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from harness.files import drafts_into
from harness.formats import bitnet_file, config_json, quantization_config, safetensors_file
from harness.reference.network import Linear, ReferenceModel, Shape, project, ternary
from harness.reference.train import tokenizer_of, write_beside
from harness.reference.world import World

LAYER_GAP = 1e-3
"""Largest difference of an output of one layer."""

MEAN_GAP = 0.1
"""Mean difference of logits between two forward passes of the whole. An input that lies between two of 256 levels goes to either,
and a step of one level in one layer moves some inputs of the next: 0.03 was seen where single layers agree to 1e-6. Wrong weights
move it by several."""


def export(network: ReferenceModel, tokenizer: Tokenizer, folder: Path) -> None:
    """Writes the packed checkpoint, each file by atomic rename. ValueError where transformers reads another network in it."""
    with drafts_into(folder) as draft:
        _write_checked(network, tokenizer, draft)
        for path in draft.iterdir():
            path.chmod(0o644)  # safetensors writes 0600


def _write_checked(network: ReferenceModel, tokenizer: Tokenizer, draft: Path) -> None:
    from transformers import LlamaForCausalLM

    state = {name: tensor.detach().cpu().float() for name, tensor in network.state_dict().items()}
    layers = {name: tensor for name, tensor in state.items() if "_proj" in name}
    rest = {name: tensor.to(torch.bfloat16) for name, tensor in state.items() if name not in layers}
    write_beside(network, tokenizer, draft)
    safetensors_file.save({**rest, **_packed(layers)}, draft / safetensors_file.MODEL)
    config_json.write({**config_json.read(draft), quantization_config.KEY: dict(bitnet_file.SETTINGS)}, draft)

    mine = ReferenceModel(network.shape)
    mine.load_state_dict({**layers, **{name: tensor.float() for name, tensor in rest.items()}})
    torch.compiler.set_stance("force_eager")  # the classes of packed layers compile themselves, for minutes
    theirs = LlamaForCausalLM.from_pretrained(draft, dtype=torch.float32)
    probe = torch.randint(0, network.shape.vocabulary, (2, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mean = float((mine.logits(probe) - theirs(probe).logits).abs().mean())
        apart = max(_apart(weight, theirs.get_submodule(name.removesuffix(".weight"))) for name, weight in layers.items())
    if not apart < LAYER_GAP or not mean < MEAN_GAP:
        raise ValueError(
            f"transformers' layers differ by up to {apart}, the logits by {mean} on average: the export is wrong, nothing was "
            "replaced"
        )


def _packed(layers: dict[str, Tensor]) -> dict[str, Tensor]:
    """Ternary matrices as transformers' BitNet layers hold them: four weights to a byte, and the number to divide by."""
    out: dict[str, Tensor] = {}
    for name, weight in layers.items():
        levels, scale = ternary(weight)
        out[name] = bitnet_file.pack(levels.detach().round())
        out[f"{name.removesuffix('.weight')}.{bitnet_file.SCALE}"] = (1 / scale).reshape(1)
    return out


def _apart(weight: Tensor, theirs: nn.Module) -> float:
    """Largest difference between the two readings of one layer, on the same inputs."""
    mine = Linear(*weight.shape, scale=1.0)
    mine.weight = nn.Parameter(weight)
    inputs = torch.randn(4, weight.shape[1], generator=torch.Generator().manual_seed(0))
    return float((project(inputs, mine, as_ternary=True) - theirs(inputs)).abs().max())


def main(folder: Path) -> None:
    state = torch.load(folder / "checkpoint.pt", map_location="cpu", weights_only=True)
    network = ReferenceModel(Shape(**state["shape"]))
    network.load_state_dict(state["network"])
    export(network, tokenizer_of(folder, World()), folder / "model")
    print(f"packed step {state['step']}, {state['tokens']} tokens")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
