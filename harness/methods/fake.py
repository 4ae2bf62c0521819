"""A method whose options script what happens, so that crashes, hangs, kills and garbage are tested exactly and in seconds.

`fake` runs in the main environment; `fake-elsewhere` needs another version of a small package than that one has, so it gets an
environment of its own, `fake-split` quantizes in another and is loaded in the main one, and `fake-unbuildable` asks for what no
index has.

They are in METHODS only when the environment variable QUANT_HARNESS_FAKES is set; no user meets them. Their "artifact" is
their options; the fake probe (probes/fake.py) reads them back in the child that measures. Scripts are short strings: ``ok``,
``sleep:SECONDS``, ``crash`` (segmentation fault), ``kill`` (SIGKILL to itself, as the kernel's out-of-memory killer does),
``exit:CODE``, ``raise:TEXT``, ``input:TEXT`` (bad input), ``env:NAME`` (raises with the variable's value), ``memory``
(MemoryError), ``torn`` (half an artifact, then a crash), ``nan``.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

from harness.artifact import LayerKernel, ModelShape, StoredTensor
from harness.errors import BadInput
from harness.methods import reload
from harness.methods.base import LoadRequest, Method, Option, QuantizeRequest, Range
from harness.spec import Json, Scheme

ARTIFACT = "fake.json"

ELSEWHERE_VERSION = "1.16.0"


def act(script: str) -> None:
    """Does what a script says; returns when it says `ok` or once it has slept."""
    verb, _, rest = script.partition(":")
    if verb == "sleep":
        time.sleep(float(rest))
    elif verb == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
        time.sleep(60)
    elif verb == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)
    elif verb == "exit":
        os._exit(int(rest))
    elif verb == "raise":
        raise RuntimeError(rest)
    elif verb == "input":
        raise BadInput(rest)
    elif verb == "env":
        raise RuntimeError(f"{rest} is {os.environ.get(rest)}")
    elif verb == "memory":
        raise MemoryError("scripted")
    elif verb not in {"ok", "nan", "torn", "another"}:
        raise ValueError(f"no such script: {script!r}")


def quantize(request: QuantizeRequest) -> None:
    script = str(request.scheme.options["on_quantize"])
    if script == "torn":
        (request.out_dir / ARTIFACT).write_text("{")
        act("crash")
    act(script)
    count = request.out_dir.parents[1] / "fake-quantized.txt"
    with count.open("a") as file:  # tests count how often something was quantized
        file.write(json.dumps(request.scheme.identity(), sort_keys=True) + "\n")
    made = {"made": time.time_ns()} if script == "another" else {}  # no two artifacts have the same bytes
    (request.out_dir / ARTIFACT).write_text(json.dumps({**request.scheme.options, **made}))
    reload.skip(request.out_dir, "scripted: there is no model to compare")


def _quantize_elsewhere(request: QuantizeRequest) -> None:
    """Works only with the version that it requires, as a library does that pins another one."""
    version = importlib.import_module("six").__version__
    if version != ELSEWHERE_VERSION:
        raise RuntimeError(f"six is {version}, not {ELSEWHERE_VERSION}")
    quantize(request)


def load(request: LoadRequest) -> Json:
    return json.loads((request.artifact_dir / ARTIFACT).read_text())


def supports(scheme: Scheme, shape: ModelShape | None, device: str) -> str | None:
    return str(scheme.options["unsupported"]) if scheme.options["unsupported"] else None


def ledger(artifact_dir: Path, scheme: Scheme) -> list[StoredTensor]:
    return [StoredTensor(name="w", layer="w", role="weight", bits=int(scheme.bits) * 100)]


def kernels(model: object) -> list[LayerKernel]:
    return []


METHOD = Method(
    name="fake",
    title="Scripted",
    bits=(16, 8, 4, 3, 2),
    options={
        "on_quantize": Option(default="ok", help="script of the quantizing child"),
        "on_a": Option(default="ok", help="script of the fake probe's question a"),
        "on_b": Option(default="ok", help="script of the fake probe's question b"),
        "on_c": Option(default="ok", help="script of the fake probe's question c"),
        "on_items": Option(default="ok", help="script of the fake probe's items, asked where a suite says budget: auto"),
        "lost": Option(
            default=0.0,
            types=(int, float),
            within=Range(least=0, most=1),
            help="share of the items that only the baseline answers",
        ),
        "gained": Option(
            default=0.0, types=(int, float), within=Range(least=0, most=1), help="share of the items that only this cell answers"
        ),
        "value": Option(default=1.0, types=(int, float), within=Range(), help="what the fake probe measures"),
        "package": Option(default="", help="the measuring child tells this package's version among its facts"),
        "unsupported": Option(default="", help="a reason makes the square unsupported"),
    },
    running_options={
        "kv_cache": Option(default="f16", choices=("f16", "q8_0"), help="the fake probe tells it among its facts"),
    },
    engine="fake",
    kernel_cpu=dict.fromkeys((16.0, 8.0, 4.0, 3.0, 2.0), "real"),
    kernel_cuda=dict.fromkeys((16.0, 8.0, 4.0, 3.0, 2.0), "real"),
    quantize=quantize,
    load=load,
    supports=supports,
    ledger=ledger,
    weights=None,
    kernels=kernels,
    modules=(),
)

ELSEWHERE = replace(
    METHOD,
    name="fake-elsewhere",
    title="Scripted, in an environment of its own",
    quantize=_quantize_elsewhere,
    environment="elsewhere",
    requirements=(f"six=={ELSEWHERE_VERSION}",),
    modules=("six",),
)

UNBUILDABLE = replace(
    METHOD,
    name="fake-unbuildable",
    title="Scripted, in an environment that cannot be built",
    environment="unbuildable",
    requirements=("six==0.0.0",),
)

SPLIT = replace(
    ELSEWHERE,
    name="fake-split",
    title="Scripted, quantized in an environment of its own and measured in the main one",
    environment="apart",
    loaded_by="fake",
)

METHODS = {method.name: method for method in (METHOD, ELSEWHERE, UNBUILDABLE, SPLIT)}
