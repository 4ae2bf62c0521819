"""A hub of the tests' own with small repositories, and the harness run as a user runs it, with an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from harness import store
from harness.spec import Record
from tests.hub.server import Hub

ROOT = Path(__file__).parents[2]
TOKEN = "hf_wholetGeheimnisSiebenundvierzig"
STRANGER = "stranger_hf_AndererLeuteSchluessel"
HIDDEN = 64


def tensors(seed: int = 0, layers: int = 2) -> dict[str, np.ndarray]:
    """A checkpoint's tensors, large enough to be kept where large files are."""
    source = np.random.default_rng(seed)
    held = {"model.embed_tokens.weight": source.standard_normal((32, HIDDEN)).astype(np.float16)}
    for layer in range(layers):
        name = f"model.layers.{layer}"
        for part in ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down"):
            held[f"{name}.{part}_proj.weight"] = source.standard_normal((HIDDEN, HIDDEN)).astype(np.float16)
        for norm in ("input", "post_attention"):
            held[f"{name}.{norm}_layernorm.weight"] = np.ones(HIDDEN, dtype=np.float16)
    return {**held, "model.norm.weight": np.ones(HIDDEN, dtype=np.float16)}


def config(layers: int = 2) -> bytes:
    said = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": HIDDEN,
        "num_attention_heads": 4,
        "num_hidden_layers": layers,
        "vocab_size": 32,
        "tie_word_embeddings": True,
    }
    return json.dumps(said).encode()


def checkpoint(seed: int = 0) -> dict[str, bytes]:
    """A repository with one file of weights, and with what many have beside it."""
    return {
        "config.json": config(),
        "tokenizer.json": b"{}",
        "model.safetensors": save(tensors(seed), metadata={"format": "pt"}),
        "README.md": b"# A model",
        "modeling_own.py": b"raise SystemExit('code of a repository was run')",
        "onnx/model.safetensors": b"\0" * 5000,
        "pytorch_model.bin": b"\0" * 5000,
    }


def shards(seed: int = 0) -> dict[str, bytes]:
    """A repository whose weights are in three files with an index, beside a twin of the whole."""
    held = list(tensors(seed).items())
    parts = [dict(held[:1]), dict(held[1:3]), dict(held[3:])]
    names = [f"model-{n:05d}-of-00003.safetensors" for n in (1, 2, 3)]
    index = {"metadata": {}, "weight_map": {tensor: name for name, part in zip(names, parts, strict=True) for tensor in part}}
    files = {name: save(part, metadata={"format": "pt"}) for name, part in zip(names, parts, strict=True)}
    twin = {"consolidated.safetensors": save(tensors(seed), metadata={"format": "pt"})}
    rest = {"config.json": config(), "tokenizer.json": b"{}", "model.safetensors.index.json": json.dumps(index).encode()}
    return {**files, **twin, **rest}


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """Somebody at a machine of their own: a folder with a home, a cache and results, beside a hub."""

    folder: Path
    hub: Hub

    @property
    def hub_cache(self) -> Path:
        return self.folder / "hf" / "hub"

    def suite(self, models: str, *, name: str = "mine", extra: str = "", fakes: bool = True) -> Path:
        path = self.folder / f"{name}.yaml"
        rows = "methods: {fake: [{bits: 16}, {bits: 4}]}\nbaseline: fake 16-bit\nprobes: [quantize, fake]\n" if fakes else ""
        path.write_text(f"name: {name}\nmodels: {models}\n{rows}{extra}\n")
        return path

    def environment(self, **more: str) -> dict[str, str]:
        mine = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGINGFACE", "TRANSFORMERS_", "XDG_"))}
        return {
            **mine,
            "HOME": str(self.folder / "home"),
            "HF_HOME": str(self.folder / "hf"),
            "HF_ENDPOINT": self.hub.address,
            "QUANT_HARNESS_CACHE": str(self.folder / "cache"),
            "QUANT_HARNESS_FAKES": "1",
            "PYTHONPATH": str(ROOT),
            "NO_PROXY": "*",
            **more,
        }

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "harness.cli", *arguments],
            cwd=self.folder,
            env=self.environment(**environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def harness(self, *arguments: str, code: int = 0, **environment: str) -> str:
        """Runs `quant-harness ...`; what it said, on both streams."""
        process = self.start(*arguments, **environment)
        out, err = process.communicate(timeout=300)
        assert process.returncode == code, f"{arguments} ended with {process.returncode}\n{out}\n{err}"
        assert "Traceback" not in out + err
        return out + err

    def python(self, code: str, **environment: str) -> str:
        """What a program says, in the user's environment; BadInput as `error: ...`."""
        caught = "except BadInput as error:\n    print(f'error: {error}')"
        program = f"from harness.errors import BadInput\ntry:\n{textwrap.indent(code, '    ')}\n{caught}"
        command = [sys.executable, "-c", program]
        environment = self.environment(**environment)
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def planned(self, suite: Path, **environment: str) -> list[dict[str, object]]:
        """The cells that `plan` shows."""
        process = self.start("plan", str(suite), "--json", **environment)
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, f"{out}\n{err}"
        cells: list[dict[str, object]] = json.loads(out)["cells"]
        return cells

    def records(self, name: str = "mine") -> tuple[Record, ...]:
        """All records of a suite, in the order in which they were written."""
        return store.read(self.folder / "results" / name).records
