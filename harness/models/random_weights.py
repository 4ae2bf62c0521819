"""Speed without weights: a checkpoint of random weights in the shape that a config describes.

Memory and latency of a model depend on its shape and its kernels, not on what it knows, so they can be measured at real
sizes where the real weights cannot be had. Run as a child process (`python -m harness.models.random_weights CONFIG FOLDER SEED`),
because it needs torch. The weights are drawn tensor by tensor into shards, so that a 70B shape needs no more memory than one
shard.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from harness import reference
from harness.errors import BadInput
from harness.files import draft_folder
from harness.formats import quantization_config, safetensors_file
from harness.spec import digest

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

KNOWN = Path(__file__).parents[1] / "shapes"
SHARD_BYTES = 2 * 10**9
DEVIATION = 0.02
"""Standard deviation of the weights: what the common initializers use; norms are ones."""


def known() -> list[str]:
    """Shapes that come with the package."""
    return sorted(p.stem for p in KNOWN.glob("*.json"))


def config_of(path: Path) -> dict[str, object]:
    """The config of a shape: a JSON file, or a folder with a config.json."""
    file = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"shape {file}: cannot be read as a model's config.json ({error})") from None
    if not isinstance(config, dict) or "model_type" not in config:
        raise BadInput(f"shape {file}: names no model_type, so it is no model's config.json")
    return config


def folder(path: Path, cache: Path, seed: int = 0) -> Path:
    """The filled checkpoint of a shape, made once per config and seed in the cache."""
    target = cache / "shapes" / digest({"config": config_of(path), "seed": seed, "version": 1})[:32]
    if (target / "config.json").is_file():
        return target
    with draft_folder(target) as draft:
        command = [sys.executable, "-m", "harness.models.random_weights", str(path), str(draft), str(seed)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise BadInput(f"shape {path}: no model can be made of it: {last}")
    return target


def fill(path: Path, out: Path, seed: int) -> None:
    """Writes random bf16 weights of the config's shape into `out`, with the reference model's tokenizer; config.json last."""
    import torch
    import transformers

    shaped = config_of(path)
    settings = {k: v for k, v in shaped.items() if k not in {"architectures", "model_type", quantization_config.KEY}}
    config = transformers.AutoConfig.for_model(str(shaped["model_type"]), **settings)
    with torch.device("meta"):
        model: PreTrainedModel = transformers.AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16, trust_remote_code=False
        )
    tied = set(getattr(model, "_tied_weights_keys", None) or ()) if config.tie_word_embeddings else set()
    draw = torch.Generator().manual_seed(seed)
    shards: list[dict[str, Tensor]] = [{}]
    size, index = 0, {}
    for name, parameter in model.named_parameters():
        if name in tied:
            continue
        if parameter.dim() < 2:
            tensor = torch.zeros(parameter.shape) if name.endswith("bias") else torch.ones(parameter.shape)
        else:
            tensor = torch.empty(parameter.shape).normal_(0, DEVIATION, generator=draw)
        tensor = tensor.to(torch.bfloat16)
        if shards[-1] and size + tensor.nbytes > SHARD_BYTES:
            safetensors_file.save(shards[-1], out / _shard(len(shards)))
            shards[-1] = {}
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
        index[name] = _shard(len(shards))
    safetensors_file.save(shards[-1], out / _shard(len(shards)))
    if len(shards) == 1:
        (out / _shard(1)).rename(out / safetensors_file.MODEL)
    else:
        (out / safetensors_file.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(reference.MODEL_DIR / name, out / name)
    written = {**config.to_dict(), "architectures": [type(model).__name__], "dtype": "bfloat16"}
    (out / "config.json").write_text(json.dumps(written, indent=2))


def _shard(number: int) -> str:
    return f"model-{number:05d}.safetensors"


if __name__ == "__main__":
    fill(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
