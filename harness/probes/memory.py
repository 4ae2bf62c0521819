"""Peak memory of loading, prefill and decoding at a declared context, in a fresh process that has done nothing else.

What is counted: the resident set's high-water mark within each phase (`harness.measure.memory_phases`), *beyond* what the process
held before it loaded the model, and without the code pages of libraries that were touched on the way. A process forked from a
server that has torch imported holds the server's pages from its first moment, and a runtime's hundreds of MB would drown a small
model: both belong to the runtime, whose size is given apart (`runtime_bytes`), and not to the weights, the cache and the
activations that quantizing is about. So that first use of the runtime is not taken for the model's, it is used once before the
counting starts (the library's modules imported, a one-layer random model of the same architecture saved, loaded and run), and
freed heap is given back.

Every resident byte counts once, whatever stands behind it: anonymous memory, or pages of a mapped weight file; a file that a
loader maps twice is counted once, and one that it has only copied from is counted in load and no longer. The same weights read
and mapped therefore give the same figure. On CUDA the phases' figures are the allocator's peaks on the device, and the host's
is given beside them. Needs Linux; Unsupported elsewhere, and where no peak can be told.

Versions
1  2026-11-21  first definition
2  2026-11-29  resident weights are read after the last phase; formats that unpack in the first forward pass were read before it
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import importlib.util
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from harness.errors import BadInput, Unsupported
from harness.formats import cache_shape, config_json
from harness.measure import memory_phases, nvidia, processes
from harness.metrics.memory import (
    DEVICE,
    GROUP,
    HOST,
    KV_CACHE,
    KV_POOL,
    PEAK_DECODE,
    PEAK_DEVICE,
    PEAK_HOST,
    PEAK_LOAD,
    PEAK_PREFILL,
    REST,
    RUNTIME,
    SERVER,
    SERVER_RSS,
    WEIGHTS,
)
from harness.models import build
from harness.probes.base import Probe, Session
from harness.probes.requests import ProbeRequests, shape_of
from harness.spec import Answer, Measurement, Metric, Phase, Question, Served


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """The process before load: `total` resident bytes, and what of it are pages of files, split as `phases.Mapped`."""

    total: int
    files: memory_phases.Mapped | None


def questions(requests: ProbeRequests) -> list[Question]:
    shape = requests.memory
    subject = f"{shape.prompt}+{shape.new} x{shape.batch}"
    return [Question(probe="memory", subject=subject, options=shape.options())]


def measure(session: Session, question: Question) -> Answer:
    shape = shape_of(question)
    asked = {"prompt_tokens": shape.prompt, "new_tokens": shape.new, "batch": shape.batch, "seed": session.seed}
    if isinstance(session.cell.origin, Served):
        return _server(session, session.cell.origin, asked)
    memory_phases.require()
    rehearsal = rehearse(session)
    start = _start(session)
    beyond: dict[str, Beyond] = {}

    with session.phase("load"):
        loaded = session.loaded
        # Mapped weights come into memory only as they are read. A model that can answer has them there, mapped or not.
        whole = memory_phases.populate(_weight_roots(session))
    beyond["load"] = _beyond(session, start)
    _release_leftovers(session)
    with session.phase("prefill"):
        prefill = loaded.run_phase("prefill", **asked)
    beyond["prefill"] = _beyond(session, start)
    _release_leftovers(session)
    with session.phase("decode"):
        decode = loaded.run_phase("decode", **asked)
    beyond["decode"] = _beyond(session, start)
    engine = loaded.facts()  # after the first forward pass, by which some formats are unpacked
    if engine.simulated:
        raise Unsupported("simulated: the engine holds these weights dequantized, so their memory is not that of the scheme")

    on_device = engine.device.startswith("cuda")
    cache, pool = decode.get("kv_cache_bytes"), decode.get("kv_pool_bytes")
    measured = _measurements(beyond, engine.resident_weight_bytes, cache, pool, start, on_device)
    facts = {
        "shape": shape.options(),
        "context_tokens": decode.get("kv_cache_tokens", shape.prompt + shape.new),
        "kv_shape": _kv_shape(session),
        "rehearsal": rehearsal,
        "before_load_bytes": start.total,
        "phases": {name: asdict(one.facts) for name, one in beyond.items()},
        "prefill": dict(prefill),
        "decode": dict(decode),
        "decode_includes_prefill": not decode.get("continued", False),
        "device_process_bytes": nvidia.own_bytes() if on_device else None,
        "mapped_weights_populated": whole,
        "notes": [f"{name}: {one.missing}" for name, one in beyond.items() if one.missing],
    }
    return Answer(measurements=tuple(measured), facts=facts)


def _kv_shape(session: Session) -> dict[str, int | None] | None:
    """The model's shape, of which the cache's bytes at another context follow; None where its configuration does not say it."""
    try:
        shape = cache_shape.cache_shape(config_json.read(session.model_dir))
    except BadInput:  # a GGUF file has no config.json
        return None
    return None if shape is None else asdict(shape)


def _server(session: Session, origin: Served, asked: Mapping[str, int]) -> Answer:
    """The memory of the processes behind a server's port, if it runs on this machine and may be looked at."""
    url = urlsplit(origin.url)
    host, port = str(url.hostname), url.port or (443 if url.scheme == "https" else 80)
    if not processes.local(host):
        raise Unsupported(f"the server is not on this machine ({host}), so its memory cannot be seen from here")
    memory_phases.require()
    pids = processes.owners(port)
    if not pids:
        raise Unsupported(
            f"no process that may be looked at listens on port {port}: the server runs in a container or as another user; run "
            "quant-harness as that user to see its memory"
        )
    idle = processes.resident(processes.family(pids))
    decode = session.loaded.run_phase("decode", **asked)
    after = processes.resident(processes.family(pids))
    measured = [] if after.pss is None else [_plain(SERVER, after.pss)]
    measured.append(_plain(SERVER_RSS, after.rss))
    facts = {
        "processes": len(after.processes),
        "before": {"pss": idle.pss, "rss": idle.rss},
        "after": {"pss": after.pss, "rss": after.rss, "peak_since_start": after.peak},
        "decode": dict(decode),
        "notes": ["host memory only: what a server holds on a GPU is not in it"]
        + ([] if after.pss is not None else ["the proportional set size may not be read: another user's process"]),
    }
    return Answer(measurements=tuple(measured), facts=facts)


def _plain(metric: Metric, value: float) -> Measurement:
    return Measurement(metric=metric.name, value=float(value), definition=metric.definition, unit=metric.unit, n=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseFacts:
    """What a phase's figure was made of. `peak_bytes` as `memory_phases` counts them; `beyond_start_bytes` is the figure;
    `code_growth_bytes` and `mapped_twice_bytes` are what was subtracted; `mapped_weights_bytes` were in memory at the end."""

    seconds: float
    peak_bytes: Mapping[str, int]
    beyond_start_bytes: int | None
    code_growth_bytes: int
    mapped_weights_bytes: int | None
    mapped_twice_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Beyond:
    """One phase against the start: `host` = peak bytes beyond it, None (and `missing` the reason) where it cannot be told;
    `code` = code pages touched since the start; `device` = the allocator's peak or None."""

    host: int | None
    code: int
    device: int | None
    missing: str
    facts: PhaseFacts


def _start(session: Session) -> Start:
    give_back_free_heap()
    files = memory_phases.mapped(_weight_roots(session))
    return Start(total=memory_phases.require().total, files=files)


def _release_leftovers(session: Session) -> None:
    """What one phase left behind is not needed by the next: free heap, and pages of a weight file that a loader mapped, copied
    from and still holds. Mapped weights that the next phase reads come back, and count, by being read."""
    give_back_free_heap()
    memory_phases.release(_weight_roots(session))


def _weight_roots(session: Session) -> list[Path]:
    return [session.artifact_dir, session.model_dir]


def _beyond(session: Session, start: Start) -> Beyond:
    phase = session.phases()[-1]
    return against(start, phase, memory_phases.mapped(_weight_roots(session)))


def against(start: Start, phase: Phase, files: memory_phases.Mapped | None) -> Beyond:
    """The phase's peak less the start, less code pages and doubly mapped pages that came since; `files` was read at its end.

    Pages of libraries only ever come, so their count at the end is the most they can have been at the peak: the figure is
    exact where none came within the phase, and too small by at most what came (`code_growth_bytes`) otherwise.
    """
    code = doubled = 0
    if files is not None and start.files is not None:
        code = max(0, files.other - start.files.other)
        doubled = max(0, files.doubled - start.files.doubled)
    peaks = phase.peak_bytes
    missing = ""
    host: int | None = None
    if "host_peak" in peaks:
        host = peaks["host_peak"] - start.total - code - doubled
    else:
        missing = (
            f"the peak could not be set back ({memory_phases.PROC}/clear_refs is not writable) and an earlier one was higher"
        )
    facts = PhaseFacts(
        seconds=phase.seconds,
        peak_bytes=peaks,
        beyond_start_bytes=host,
        code_growth_bytes=code,
        mapped_weights_bytes=None if files is None else files.weights,
        mapped_twice_bytes=doubled,
    )
    return Beyond(host=host, code=code, device=peaks.get("device_allocated"), missing=missing, facts=facts)


def _measurements(
    beyond: Mapping[str, Beyond], weights: int, cache: int | None, pool: int | None, start: Start, on_device: bool
) -> list[Measurement]:
    """`cache`: what keys and values take, None where the engine cannot tell; then the rest cannot be told either. `pool`: what an
    engine has reserved for them, whatever is in it; all of it takes memory."""
    held = cache if pool is None else pool
    measured: list[Measurement] = []

    def add(metric: Metric, value: int | None, definition: str | None = None) -> None:
        if value is not None:
            name = metric.definition if definition is None else definition
            measured.append(Measurement(metric=metric.name, value=float(value), definition=name, unit=metric.unit, n=1))

    definition = DEVICE if on_device else HOST
    for metric, name in ((PEAK_LOAD, "load"), (PEAK_PREFILL, "prefill"), (PEAK_DECODE, "decode")):
        add(metric, beyond[name].device if on_device else beyond[name].host, definition)
    host = [one.host for one in beyond.values() if one.host is not None]
    if len(host) == len(beyond):
        add(PEAK_HOST, max(host))
    elif not host and not on_device:
        raise Unsupported(f"no peak can be told: {beyond['decode'].missing}")
    if on_device:
        add(PEAK_DEVICE, max((one.device for one in beyond.values() if one.device is not None), default=None))
    steady = beyond["decode"].device if on_device else beyond["decode"].host
    add(WEIGHTS, weights)
    add(KV_CACHE, cache)
    add(KV_POOL, pool)
    add(REST, None if steady is None or held is None else steady - weights - held)
    add(RUNTIME, start.total + beyond["decode"].code)
    return measured


def rehearse(session: Session) -> str:
    """Uses the runtime once, so that its own first use is not counted as the model's. Returns what was done, or why not."""
    from harness.engines import ENGINES
    from harness.methods import METHODS

    method = METHODS[session.cell.method]
    engine, loader = ENGINES[session.cell.running.engine], METHODS.get(method.loaded_by, method)
    own = f"harness.engines.{engine.name}"
    theirs = () if engine.places else (*loader.branch_modules, *loader.modules)  # an engine of its own loads by itself
    for module in (*theirs, *engine.modules, *([own] if importlib.util.find_spec(own) else [])):
        importlib.import_module(module)
    if engine.name != "transformers":
        return "modules imported"
    try:
        name = _run_tiny(session.model_dir, session.device)
    except Exception as error:  # an architecture that cannot be cut to one layer only loses the rehearsal, and says so
        return f"modules imported; no one-layer model of this architecture ({type(error).__name__}: {str(error)[:200]})"
    return f"modules imported; a random one-layer {name} loaded and run"


def _run_tiny(model_dir: Path, device: str) -> str:
    """Makes, saves, reloads and runs a random model of the same architecture cut to one narrow layer; loads the tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoTokenizer.from_pretrained(str(model_dir), trust_remote_code=False)
    config = build.unquantized_config(model_dir)
    text = config.get_text_config()
    text.num_hidden_layers = 1
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:1]
    if getattr(text, "intermediate_size", None):
        text.intermediate_size = 64
    text.vocab_size = 64
    text.pad_token_id = None
    text.bos_token_id = text.eos_token_id = 0
    ids = torch.zeros(1, 16, dtype=torch.long, device=device)
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        made = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, trust_remote_code=False)
        made.save_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, trust_remote_code=False).eval().to(device)
        output = model(input_ids=ids, use_cache=True)
        model(input_ids=ids[:, :1], use_cache=True, past_key_values=output.past_key_values)
    return type(model).__name__


def give_back_free_heap() -> None:
    """Free heap that stays resident would be reused by the load unseen, and the load would look smaller than it is."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


PROBE = Probe(
    name="memory",
    title=GROUP.title,
    version="2",
    metrics=GROUP.metrics,
    isolation="memory",
    questions=questions,
    measure=measure,
    preload=("harness.engines.transformers",),
)
