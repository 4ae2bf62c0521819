"""Whether a file holds the model that its config.json describes, for `plan`: from the headers, before a weight is read.

Only transformers can say what it loads, and importing it takes seconds. So a checkpoint of a well-known kind whose headers are
as its config says, name by name (`_plain`), is asked nothing about. Of any other, a process of its own answers once for each
config and list of tensors: what `source.make` would refuse, or leave out (models/source.py holds the rules). A config without a
file, that of a shape, is asked there for its tensors.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from harness.errors import BadInput
from harness.files import write_atomically
from harness.formats import config_json, quantization_config
from harness.formats.config_json import ModelConfig
from harness.models import body
from harness.spec import digest, to_json

Headers: TypeAlias = Mapping[str, tuple[str, list[int]]]
"""Tensors by name: safetensors dtype such as "BF16", and shape."""

VERSION = 1
"""Raised when the same config and headers get another answer."""

_SECONDS = 300.0
_SAID, _STORED = "said.json", "stored.json"
_known: dict[str, str] = {}  # of this process, by the digest that also names the file in the cache


def unread(config: ModelConfig, stored: Headers, *, cache: Path | None) -> tuple[str, ...]:
    """The stored tensors that transformers does not load and that such a checkpoint may hold. `cache`: where it is remembered.
    None are named where torch and transformers are not here, or say nothing.

    BadInput, without the checkpoint's place, says why the file is not the model that the config describes."""
    computed = tuple(sorted(name for name in stored if DERIVED.search(name)))
    if _plain(config, {name: entry for name, entry in stored.items() if name not in computed}):
        return computed
    said = _ask(config, stored, cache)
    return () if said is None else tuple(map(str, said["unread"]))


def tensors(config: ModelConfig, *, cache: Path | None) -> dict[str, tuple[str, list[int]]] | None:
    """The tensors, in bfloat16, of the unquantized model that transformers makes of a config; None where torch and transformers
    are not here, or say nothing. BadInput, without the config's place, says why it makes none."""
    said = _ask({k: v for k, v in config.items() if k != quantization_config.KEY}, None, cache)
    return None if said is None else {str(name): ("BF16", list(sizes)) for name, sizes in said["tensors"].items()}


DERIVED = re.compile(r"(^|\.)(inv_freq|masked_bias|position_ids)$")
"""Tensors that models compute anew, by their names."""

_KINDS = ("llama", "mistral", "qwen2", "qwen3")


def _plain(config: ModelConfig, stored: Headers) -> bool:
    """Whether every tensor of a well-known kind is there, in the shape that the config says, and no other."""
    kind = config.get("model_type")
    sizes = {name: config_json.integer(config, name) for name in ("hidden_size", "num_hidden_layers", "vocab_size")}
    asks = any(config.get(key) for key in ("attention_bias", "mlp_bias", "auto_map", quantization_config.KEY))
    if not isinstance(kind, str) or kind not in _KINDS or asks or not all(sizes.values()):
        return False
    if any(not dtype.startswith(("F16", "F32", "F64", "BF16")) for dtype, _ in stored.values()):
        return False
    shapes = {name: shape for name, (_, shape) in stored.items()}
    ends = {
        "model.embed_tokens.weight": [sizes["vocab_size"], sizes["hidden_size"]],
        "model.norm.weight": [sizes["hidden_size"]],
    }
    if config.get("tie_word_embeddings", False) is not True or "lm_head.weight" in shapes:
        ends["lm_head.weight"] = [sizes["vocab_size"], sizes["hidden_size"]]
    wanted = _layer(config, kind, sizes["hidden_size"])
    layers = {f"model.layers.{n}.{name}": shape for n in range(sizes["num_hidden_layers"]) for name, shape in wanted.items()}
    return shapes == ends | layers


def _layer(config: ModelConfig, kind: str, hidden: int) -> dict[str, list[int]]:
    heads = config_json.integer(config, "num_attention_heads", default=1)
    width = config_json.integer(config, "head_dim", default=0 if kind == "qwen3" else hidden // heads)
    inner = config_json.integer(config, "intermediate_size")
    queries, keys = heads * width, config_json.integer(config, "num_key_value_heads", default=heads) * width
    shapes = {
        "self_attn.q_proj.weight": [queries, hidden],
        "self_attn.k_proj.weight": [keys, hidden],
        "self_attn.v_proj.weight": [keys, hidden],
        "self_attn.o_proj.weight": [hidden, queries],
        "mlp.gate_proj.weight": [inner, hidden],
        "mlp.up_proj.weight": [inner, hidden],
        "mlp.down_proj.weight": [hidden, inner],
        "input_layernorm.weight": [hidden],
        "post_attention_layernorm.weight": [hidden],
    }
    if kind == "qwen2":
        shapes |= {f"self_attn.{part}_proj.bias": [rows] for part, rows in (("q", queries), ("k", keys), ("v", keys))}
    if kind == "qwen3":
        shapes |= {"self_attn.q_norm.weight": [width], "self_attn.k_norm.weight": [width]}
    return shapes


def _ask(config: ModelConfig, stored: Headers | None, cache: Path | None) -> Mapping[str, Mapping[str, list[int]]] | None:
    """What the process says of a config and, unless None, of the headers of a file. BadInput where that is a refusal."""
    version = body.transformers_here()
    if version is None:
        return None
    asked = {"config": to_json(config), "stored": to_json(stored), "transformers": version, "version": VERSION}
    key = digest(asked)[:32]
    memo = None if cache is None else cache / "fits" / f"{key}.json"
    if key not in _known and memo is not None and memo.is_file():
        _known[key] = memo.read_text(encoding="utf-8")
    if key not in _known:
        text = _asked(config, stored)
        if text is None:
            return None
        _known[key] = text
    if memo is not None and not memo.is_file():
        memo.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(memo, _known[key])
    said = json.loads(_known[key])
    if isinstance(said, str):
        raise BadInput(said)
    found: Mapping[str, Mapping[str, list[int]]] = said
    return found


def _asked(config: ModelConfig, stored: Headers | None) -> str | None:
    """The answer as JSON, a text for a refusal; None where the process left none."""
    with tempfile.TemporaryDirectory(prefix="config-") as folder:
        place = Path(folder)
        config_json.write(config, place)
        if stored is not None:
            (place / _STORED).write_text(json.dumps(stored), encoding="utf-8")
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(
                [sys.executable, "-m", "harness.models.fit", str(place)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_SECONDS,
                check=False,
            )
        said = place / _SAID
        return said.read_text(encoding="utf-8") if said.is_file() else None


def _main(place: Path) -> None:
    """Leaves the answer in the folder."""
    from harness.formats.safetensors_file import HeaderEntry
    from harness.models import build, source

    try:
        if (place / _STORED).is_file():
            headers = json.loads((place / _STORED).read_text(encoding="utf-8"))
            entries = {n: HeaderEntry(name=n, dtype=d, shape=tuple(s), file=place) for n, (d, s) in headers.items()}
            said: object = {"unread": sorted(source.not_loaded(place, entries))}
        else:
            said = {"tensors": {name: sizes for name, (_, sizes) in build.unpacked(place).items()}}
    except BadInput as error:
        said = str(error).replace(f"{place}: ", "")
    write_atomically(place / _SAID, json.dumps(said))


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
