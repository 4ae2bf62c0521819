"""Does a method work in an environment? It quantizes a tiny model there, and a fresh child reloads the artifact.

The model is generated here without torch: a Llama of two layers in the smallest widths that every method's groups and blocks
divide, random weights, the embedded model's tokenizer. Quantizing and reloading run as jobs of the same worker that measures,
so that what passes here is what a run does: libraries imported, artifact packed, reloaded and compared with its own weights.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from harness import plugins, reference
from harness.artifact import ModelShape
from harness.child import fork_server
from harness.child import job as jobs
from harness.child.events import JobRequest
from harness.child.failures import failure_of
from harness.child.job import Stage
from harness.engines import ENGINES
from harness.engines.base import Engine
from harness.envs.disk import Health
from harness.formats import safetensors_file
from harness.measure import machine, nvidia
from harness.methods.base import Method, resolve_options, running_of
from harness.models import find
from harness.spec import Cell, Failure, Json, Model, Quantized, Scheme

WIDTH = 256
"""Of every layer: the least that blocks of 256 weights divide."""

LAYERS = 2
SECONDS = 1800.0
"""After that long a job of the check is stopped; learned rounding takes minutes on any model."""

CALIBRATION: Mapping[str, Json] = {"corpus": "tiny", "samples": 8, "length": 64, "seed": 0}
"""The option of a calibrated scheme, and with the text's path the rows that its job draws."""


TRAIN: Mapping[str, Json] = {"steps": 2, "rows": 2, "rate": 1e-4, "loss": "ce"}
"""The option of a scheme that trains on these rows."""


def check(method: Method, *, python: Path, home: Path) -> Health:
    """Quantizes and reloads a tiny model with `method` in the interpreter `python`. `home` is an empty private folder. A method
    whose artifacts the main environment loads is reloaded there.

    A method that takes no such model on any device of this machine (it needs CUDA, say) is only imported, and the message says
    so."""
    started = time.monotonic()
    folder = tiny_model(home / "model")
    tried = _first(method, find.shape_of(folder))
    loads = Path(sys.executable) if method.loaded_by else python
    modules = method.modules if isinstance(tried, str) else ENGINES[method.engine].modules
    offered = plugins.used([method.name], [])
    server = _server(python, modules, home / "server", offered)
    second = server if loads == python else _server(loads, ENGINES[method.engine].modules, home / "second", offered)
    wrong: Failure | None = None
    message = ""
    try:
        ready = server.start()
        if isinstance(tried, str):
            message = f"not tried, its packages were only imported: {tried}"
            if ready.missing:
                said = "; ".join(f"{name} cannot be imported: {why}" for name, why in ready.missing.items())
                wrong = Failure(kind="environment", phase="environment", message=said, log_tail=server.log_tail())
        else:
            wrong = _try(method, tried, folder, home, {"quantize": server, "verify": second})
    except fork_server.ServerFailed as error:
        wrong = Failure(kind="environment", phase="environment", message=str(error))
    finally:
        server.close()
        second.close()
    seconds = time.monotonic() - started
    if wrong is not None:
        said = f"{wrong.kind} in {wrong.phase}: {wrong.message}"
        return Health(ok=False, version=method.version, message=said, log_tail=wrong.log_tail, seconds=seconds)
    return Health(ok=True, version=method.version, message=message, log_tail="", seconds=seconds)


def check_engine(engine: Engine, method: Method, *, device: str, python: Path, home: Path) -> Health:
    """Has the engine load a tiny model in the interpreter `python`; `method`, an unquantized one, writes it in this interpreter.
    Where this machine has no such device, the engine's packages are only imported, and the message says so."""
    started = time.monotonic()
    folder = tiny_model(home / "model")
    here = device == "cpu" or bool(nvidia.gpus())
    bits = method.bits[0]
    scheme = Scheme(method=method.name, bits=bits, options=resolve_options(method, {}, bits))
    running = running_of(method, {}, bits, engine=engine.name, flags=engine.flags)
    cell = Cell(model=Model(name="tiny", path=str(folder)), origin=Quantized(scheme=scheme), running=running)
    makes = _server(Path(sys.executable), method.modules, home / "makes", [])
    loads = _server(python, engine.modules, home / "loads", [])
    wrong: Failure | None = None
    try:
        ready = loads.start()
        if ready.missing:
            said = "; ".join(f"{name} cannot be imported: {why}" for name, why in ready.missing.items())
            wrong = Failure(kind="environment", phase="environment", message=said, log_tail=loads.log_tail())
        elif here:
            wrong = _jobs(cell, device, folder, home, {"quantize": makes, "verify": loads}, None)
    except fork_server.ServerFailed as error:
        wrong = Failure(kind="environment", phase="environment", message=str(error))
    finally:
        makes.close()
        loads.close()
    told = "" if here else "not tried, its packages were only imported: this machine has no such device"
    said = told if wrong is None else f"{wrong.kind} in {wrong.phase}: {wrong.message}"
    tail = "" if wrong is None else wrong.log_tail
    return Health(ok=wrong is None, version=method.version, message=said, log_tail=tail, seconds=time.monotonic() - started)


def _server(python: Path, modules: Sequence[str], home: Path, offered: Sequence[plugins.Plugin]) -> fork_server.Server:
    return fork_server.Server(
        python=python,
        modules=modules,
        home=home,
        offered=offered,
        env={
            "PATH": f"{python.parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1",
        },
    )


def _first(method: Method, shape: ModelShape) -> tuple[Scheme, str] | str:
    """A scheme of default options that runs here, and its device; 4 bits where there are some. Else the reason why none does."""
    reason = "it can run on no device of this machine"
    kernels: list[tuple[str, Mapping[float, str]]] = [("cpu", method.kernel_cpu)]
    if nvidia.gpus():
        kernels.append(("cuda", method.kernel_cuda))
    for device, by_bits in kernels:
        for bits in sorted(method.bits, key=lambda b: abs(b - 4)):
            scheme = Scheme(method=method.name, bits=bits, options=resolve_options(method, {}, bits))
            if by_bits.get(bits, "none") != "none":
                refused = method.supports(scheme, shape, device)
                if refused is None:
                    return scheme, device
                reason = refused
    return reason


def _try(
    method: Method, tried: tuple[Scheme, str], folder: Path, home: Path, servers: Mapping[Stage, fork_server.Server]
) -> Failure | None:
    """Quantizes in one child, reloads in another, each of the server of its stage; None when both went well."""
    scheme, device = tried
    calibration: jobs.CalibrationRows | None = None
    if method.calibrated:
        text = home / "calibration.txt"
        text.write_text(_words(4000), encoding="utf-8")
        calibration = jobs.CalibrationRows(**CALIBRATION, path=text)
        scheme = replace(scheme, options={**scheme.options, "calibration": CALIBRATION})
    if method.trains is not None:
        scheme = replace(scheme, options={**scheme.options, "train": TRAIN})
    cell = Cell(
        model=Model(name="tiny", path=str(folder)),
        origin=Quantized(scheme=scheme),
        running=running_of(method, {}, scheme.bits),
    )
    return _jobs(cell, device, folder, home, servers, calibration)


def _jobs(
    cell: Cell,
    device: str,
    folder: Path,
    home: Path,
    servers: Mapping[Stage, fork_server.Server],
    calibration: jobs.CalibrationRows | None,
) -> Failure | None:
    """Has each server do its stage of the cell; the first failure, or None."""
    artifact = home / "artifacts" / cell.method
    artifact.mkdir(parents=True)
    for stage, server in servers.items():
        place = home / stage
        place.mkdir()
        job = jobs.Job(
            stage=stage,
            cell=cell,
            model_dir=folder,
            artifact_dir=artifact,
            device=device,
            seed=0,
            threads=len(machine.affinity()),
            cache=home,
            calibration=calibration,
            training=home / "training",
        )
        jobs.write_job(place, job)
        ended = server.run(JobRequest(job=place), lambda event: None, SECONDS)
        outcome = jobs.read_outcome(place, phase=stage)
        wrong = failure_of(outcome, ended, log=jobs.log(place), phase=stage, timeout=SECONDS)
        if wrong is not None:
            return wrong
    return None


def tiny_model(folder: Path) -> Path:
    """Writes the tiny checkpoint into `folder`: bf16 weights of random sign and of magnitudes 2^-9 to 2^-5, norms of one."""
    folder.mkdir(parents=True)
    tokenizer = json.loads((reference.MODEL_DIR / "tokenizer.json").read_text(encoding="utf-8"))
    known = [*tokenizer["model"]["vocab"].values(), *(token["id"] for token in tokenizer["added_tokens"])]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(reference.MODEL_DIR / name, folder / name)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "hidden_act": "silu",
        "max_position_embeddings": 256,
        "vocab_size": max(known) + 1,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (max(known) + 1, WIDTH), "model.norm.weight": (WIDTH,)}
    for layer in range(LAYERS):
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            tensors[f"model.layers.{layer}.self_attn.{name}.weight"] = (WIDTH, WIDTH)
        for name in ("gate_proj", "up_proj", "down_proj"):
            tensors[f"model.layers.{layer}.mlp.{name}.weight"] = (WIDTH, WIDTH)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{name}.weight"] = (WIDTH,)
    _save(tensors, folder / "model.safetensors")
    return folder


def _save(shapes: Mapping[str, tuple[int, ...]], path: Path) -> None:
    """A safetensors file of small random weights, written without torch."""
    draw = random.Random(0)
    header = safetensors_file.header_bytes(
        [(name, "BF16", shape) for name, shape in shapes.items()], metadata=safetensors_file.BY_TORCH
    )
    parts = [b"\x80\x3f" * s[0] if len(s) == 1 else _weights(draw, s[0] * s[1]) for s in shapes.values()]
    path.write_bytes(header + b"".join(parts))


_HIGH = bytes((byte & 0x80) | (60 - (byte & 1)) for byte in range(256))
"""Random byte -> sign and the upper seven bits of a bf16 exponent: with a random low byte, magnitudes from 2^-9 to 2^-5."""


def _weights(draw: random.Random, count: int) -> bytes:
    data = bytearray(2 * count)
    data[0::2] = draw.randbytes(count)
    data[1::2] = draw.randbytes(count).translate(_HIGH)
    return bytes(data)


def _words(count: int) -> str:
    draw = random.Random(0)
    syllables = ("ka", "lo", "mi", "ren", "sta", "tu", "ver", "zo")
    return " ".join("".join(draw.choices(syllables, k=draw.randint(1, 3))) for _ in range(count))
