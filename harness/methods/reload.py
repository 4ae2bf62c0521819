"""Reload check: does the artifact, loaded from disk in a fresh process, answer as its weights say?

Formats exist that load without an error and answer garbage. So every quantizing child keeps a few reference answers beside the
weights, and every child that loads the artifact compares before it measures anything.

`write` stores, for 32 positions, the 8 most probable next tokens of the reference model with their log-probabilities.
The reference is the artifact's own packed weights, unpacked by this project's code and run in float32, or, where a format is
the library's own, the weights that the quantizing library holds in memory. `check` answers the same positions with the loaded
model and takes the divergence KL(reference || loaded) over nine outcomes (those 8 tokens, and everything else), in nats.
Lumping outcomes together can only lower a divergence (log-sum inequality; Cover & Thomas, Elements of Information Theory,
2.7), so what is over the limit here is over it in full.

The limit: kernels differ in the order of their sums and in bf16 rounding, which moves the answers a little; how much is
measured when writing, by running the same reference in bf16 (`floor`). A sound reload stays within a few floors; wrong
zero points, wrong order of columns or unread tensors cost tenths of nats to nats. `LIMIT_FLOORS` times the floor, and at
least `LIMIT_NATS`, lies between the two by more than a factor of ten on either side.
"""

from __future__ import annotations

import json
import random
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from harness.errors import BadInput
from harness.methods.base import LoadRequest, QuantizeRequest
from harness.spec import Json

FILE = "reload_check.json"
ROWS, LENGTH, TOP = 2, 17, 8
LIMIT_FLOORS = 20.0
LIMIT_NATS = 2e-3


def rows_for(vocabulary: int, calibration: Sequence[Sequence[int]] | None) -> list[list[int]]:
    """The rows to compare on: the beginnings of two calibration rows, or seeded random tokens where there are none."""
    if calibration:
        chosen = [list(row[:LENGTH]) for row in (calibration[0], calibration[-1])]
        if min(map(len, chosen)) == LENGTH:
            return chosen
    draw = random.Random(0)
    return [[draw.randrange(vocabulary) for _ in range(LENGTH)] for _ in range(ROWS)]


def write(model: Any, rows: Sequence[Sequence[int]], out_dir: Path, *, by: str, noisy: Any = None, floor: float = 0.0) -> None:
    """Stores the answers of `model` (a causal LM) on `rows` (equal lengths) in `out_dir`.

    `by` says who answered. `noisy` is called after that and returns the same model in bf16: its distance is the floor;
    without it, `floor` (nats) is taken.
    """
    logits = answers(model, rows)
    top = logits.topk(TOP, dim=-1)
    reference = {"ids": top.indices.tolist(), "log_probabilities": top.values.tolist()}
    if noisy is not None:
        floor = distance(reference, answers(noisy(), rows))
    data = {"by": by, "rows": [list(row) for row in rows], "floor": floor, **reference}
    (out_dir / FILE).write_text(json.dumps(_rounded(data)), encoding="utf-8")


def skip(out_dir: Path, reason: str) -> None:
    """Stores that there is nothing to compare (an unquantized artifact), so that a missing file is never taken for that."""
    (out_dir / FILE).write_text(json.dumps({"skip": reason}), encoding="utf-8")


def check(model: Any, artifact_dir: Path) -> str | None:
    """None if the loaded `model` (a causal LM) answers as the artifact's weights say, else what is wrong."""
    try:
        data = json.loads((artifact_dir / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"the artifact has no readable {FILE}, so nothing shows that it loads as it was written; quantize it again"
    if "skip" in data:
        return None
    limit = max(LIMIT_NATS, LIMIT_FLOORS * data["floor"])
    found = distance(data, answers(model, data["rows"]))
    if found <= limit:
        return None
    return (
        f"the reloaded model does not answer as its weights say: {found:.3g} nats from the reference ({data['by']}), where "
        f"{limit:.3g} is allowed for rounding; this format loads, but as another model"
    )


def answers(model: Any, rows: Sequence[Sequence[int]]) -> Any:
    """Log-probabilities [positions, vocabulary] (float32, CPU) after each token but the last of each row."""
    import torch

    own = getattr(model, "log_probabilities", None)
    if own is not None:  # another engine's model answers for itself
        return own(rows)
    device = next(p.device for p in (*model.parameters(), *model.buffers()))
    ids = torch.tensor([list(row[:-1]) for row in rows], dtype=torch.long, device=device)
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False).logits
    return torch.log_softmax(logits.float().flatten(0, 1), dim=-1).cpu()


def distance(reference: Json, found: Any) -> float:
    """Mean over positions of KL(reference || found) in nats over `TOP` tokens and the rest; infinity if not finite."""
    import torch

    if not bool(torch.isfinite(found).any(dim=-1).all()):
        return float("inf")
    ids = torch.tensor(reference["ids"])
    if int(ids.max()) >= found.shape[-1] or ids.shape[0] != found.shape[0]:
        return float("inf")
    p = _with_rest(torch.tensor(reference["log_probabilities"], dtype=torch.float64).exp())
    q = _with_rest(found.double().gather(1, ids).exp())
    terms = torch.where(p > 0, p * (p.clamp_min(1e-300).log() - q.clamp_min(1e-30).log()), torch.zeros_like(p))
    result = float(terms.sum(dim=-1).mean())
    return max(result, 0.0) if result == result else float("inf")


def _with_rest(listed: Any) -> Any:
    """Probabilities [n, TOP] completed by what is left of 1 (rounding may leave a little less than nothing)."""
    import torch

    return torch.cat([listed, (1 - listed.sum(dim=-1, keepdim=True)).clamp_min(1e-9)], dim=-1)


def _rounded(value: Json) -> Json:
    """Seven digits are what float32 carries; more only make the file larger."""
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    return {k: _rounded(v) for k, v in value.items()} if isinstance(value, dict) else value


def plain(folder: Path, dtype: Any, device: str) -> Any:
    """The checkpoint in `folder` as a transformers causal LM in eval mode: safetensors only, no code of the checkpoint."""
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(
        str(folder),
        **in_dtype(dtype),
        device_map={"": device},
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    complete(report, str(folder))
    return model.eval()


def in_dtype(dtype: Any) -> dict[str, Any]:
    """The argument of `from_pretrained` that names the dtype: transformers of environments of their own may call it as of old."""
    import transformers

    return {"dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype": dtype}


def dense(model_dir: Path, state: dict[str, Any], dtype: Any) -> Any:
    """A causal LM of the source's architecture with the given weights, in `dtype` on the CPU: a packed format's reference."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(str(model_dir), trust_remote_code=False)
    config.__dict__.pop("quantization_config", None)  # of a checkpoint that is quantized already: these weights are not
    with torch.device("meta"):
        kind = type(AutoModelForCausalLM.from_config(config))
    model, report = kind.from_pretrained(None, config=config, state_dict=state, output_loading_info=True, **in_dtype(dtype))
    complete(report, "the unpacked weights")
    return model.eval()


def without(request: LoadRequest, layers: Collection[str], rest: dict[str, Any], *, bias: bool = True) -> Any:
    """The artifact's architecture in bf16 on the device with the weights `rest`. The linear `layers` have no weight: the caller
    puts packed ones in their place. Without `bias` they have none either: the caller's layers bring their own.

    They have none from the first moment on. transformers gives a weight that it does not find its full size, on the device, and
    random values: a model that fits packed would have to fit unpacked first, and filling it takes longer than reading it.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(str(request.artifact_dir), trust_remote_code=False)
    with torch.device("meta"):
        kind = type(AutoModelForCausalLM.from_config(config))

    def build(model: Any, *arguments: Any, **named: Any) -> None:
        kind.__init__(model, *arguments, **named)
        for name in layers:
            layer = model.get_submodule(name)
            layer.weight = None
            layer.bias = layer.bias if bias else None
            layer._is_hf_initialized = True  # how transformers marks a module that it need not fill

    hollow: Any = type(kind.__name__, (kind,), {"__init__": build, "__module__": kind.__module__})
    model, report = hollow.from_pretrained(
        None, config=config, state_dict=rest, dtype=torch.bfloat16, device_map={"": request.device}, output_loading_info=True
    )
    complete(report, str(request.artifact_dir))
    model.__class__ = kind
    return model.eval()


def complete(report: Json, what: str) -> None:
    """BadInput unless every weight of the model was found: a weight left at its random start answers garbage."""
    missing = sorted(report.get("missing_keys", ()))
    wrong = sorted(map(str, report.get("mismatched_keys", ())))
    if missing or wrong:
        raise BadInput(f"{what}: the checkpoint does not fit its config: {(missing or wrong)[:3]} of {len(missing) + len(wrong)}")


def write_dense(request: QuantizeRequest, state: dict[str, Any], by: str) -> None:
    """Stores the answers of the source's architecture with the dense weights `state`, and its bf16 distance as the floor.

    `by` says "float32"; where `reference_dtype` is bf16 it is stored as "bfloat16".
    """
    import torch

    dtype = reference_dtype(sum(t.numel() for t in state.values()))
    wide = dtype == torch.float32
    model = dense(request.model_dir, state, dtype)
    rows = rows_for(int(model.config.vocab_size), request.calibration)
    write(
        model, rows, request.out_dir, by=by if wide else by.replace("float32", "bfloat16"), noisy=lambda: model.to(torch.bfloat16)
    )


def reference_dtype(parameters: int) -> Any:
    """float32, or bf16 for a model of more than two billion parameters: its float32 would not fit where the model does."""
    import torch

    return torch.float32 if parameters < 2_000_000_000 else torch.bfloat16


def decoder_linears(model: Any) -> list[str]:
    """Names of the linear layers of the decoder blocks: what weight-only methods quantize (head and embeddings stay)."""
    import torch

    head = model.get_output_embeddings()
    return [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and module is not head]


def own_state(model: Any) -> dict[str, Any]:
    """The model's persistent tensors, each stored once: a head tied to the embeddings is left out."""
    state: dict[str, Any] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict().items():
        if tensor.numel() and tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        state[name] = tensor.contiguous()
    return state
