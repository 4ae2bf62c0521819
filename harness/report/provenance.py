"""Where the numbers come from: machine, versions, commit, and the commands that make them again."""

from __future__ import annotations

from collections.abc import Sequence

from harness.report.cells import CellView, Outcome, plain_table
from harness.report.markup import Markup, el, join
from harness.report.numbers import display, show, with_unit
from harness.report.section import Section
from harness.report.view import View
from harness.spec import EnvironmentRecord, Given, Model

PACKAGES = (
    "torch", "transformers", "lm-eval", "numpy", "gptqmodel", "hqq", "bitsandbytes", "auto-round", "torchao", "optimum-quanto",
    "llmcompressor", "compressed-tensors", "llama-cpp-python", "openvino", "nncf", "neural-compressor", "nvidia-modelopt",
    "accelerate", "safetensors", "tokenizers", "datasets", "llm-quant-harness",
)  # fmt: skip
"""Shown first; the rest of the list is folded away."""

NAMES = {
    "cpu": "CPU",
    "cores": "Cores",
    "cores_usable": "Cores usable",
    "cpu_flags": "Instruction sets",
    "cache_bytes": "Caches",
    "memory_bytes": "Memory",
    "gpus": "GPUs",
    "system": "System",
    "kernel": "Kernel",
    "architecture": "Architecture",
    "virtualized": "Virtual machine",
    "python": "Python",
    "governor": "Frequency governor",
    "host": "Host id",
}


def section(view: View) -> Section | None:
    context = view.context
    commands = [el("pre", el("code", command), tabindex="0") for command in view.commands]
    machine = plain_table(context.get("machine"))
    rows: list[tuple[str, object]] = [
        ("Run", view.run),
        ("Started", view.started_at),
        ("Commit", context.get("commit")),
        ("Device", context.get("device")),
    ]
    rows += [("Threads", context.get("threads"))]
    rows += [("Plugins", ", ".join(plain_table(context.get("plugins"))))]
    known = {"machine", "packages", "commit", "device", "threads", "plugins"}
    rows += [(key.replace("_", " ").capitalize(), value) for key, value in sorted(context.items()) if key not in known]
    packages = plain_table(context.get("packages"))
    main = {name: packages[name] for name in PACKAGES if name in packages}
    rest = {name: version for name, version in sorted(packages.items()) if name not in main}
    body = [
        el("h3", "Repeat it"),
        *(commands or [el("p", "No command was stored with this run.", cls="muted")]),
        _exactly(view),
        el("div", _facts("Run", rows), _facts("Machine", [(NAMES.get(k, k), v) for k, v in machine.items()]), cls="columns"),
        _facts("Models", _models(view)),
        _facts("Packages", list(main.items())) if main else None,
    ]
    if rest:
        body.append(
            el("details", el("summary", f"{len(rest)} more packages"), el("p", ", ".join(f"{n} {v}" for n, v in rest.items())))
        )
    environments = sorted({o.record.environment for c in view.cells for o in c.outcomes if o.record and o.record.environment})
    if environments:
        listed = ", ".join(e[:12] for e in environments)
        body.append(el("p", f"Environments (digest of the installed package list): {listed}", cls="muted"))
    body += [_environment(e) for e in view.environments if e.digest in environments]
    stores = _stores(view)
    if stores:
        body += [el("h3", "What cells are compared with"), el("ul", *(el("li", line) for line in stores))]
    return Section(
        id="provenance",
        nav="Provenance",
        title="Provenance",
        lead="Where these numbers come from and how to make them again.",
        body=join(*body),
    )


def _exactly(view: View) -> Markup:
    """What the same numbers need beside the command: the same code, packages and weights; each with its digest."""
    context = view.context
    packages = plain_table(context.get("packages"))
    commit, source = context.get("commit"), context.get("source")
    steps = [
        f"The code: commit {commit}" if commit else "The code: of no commit that was known",
        f"digest of the measuring code {str(source)[:16]}" if source else None,
        f"Python {context.get('python')}" if context.get("python") else None,
        f"weights {', '.join(f'{name} {weights[:16]}' for name, weights in sorted(view.weights.items()))}"
        if view.weights
        else None,
    ]
    wanted = "\n".join(f"{name}=={version}" for name, version in sorted(packages.items()))
    pinned = el("details", el("summary", f"Its {len(packages)} packages as a requirements file"), el("pre", wanted, tabindex="0"))
    return join(el("p", "; ".join(step for step in steps if step), ".", cls="note"), pinned if packages else None)


def _models(view: View) -> list[tuple[str, object]]:
    """Each model and each given checkpoint: where it comes from, at which commit, and the digest of its weights."""
    made_of = [cell.cell.origin.checkpoint for cell in view.cells if isinstance(cell.cell.origin, Given)]
    models = {model.name: model for model in (*(cell.cell.model for cell in view.cells), *made_of)}
    return [(name, _model(model, view.weights.get(name))) for name, model in models.items()]


def _model(model: Model, weights: str | None) -> str:
    if model.random:
        parts = ["random weights in the shape of a configuration"]
    elif model.repo is not None:
        parts = [model.repo + (f"/{model.file}" if model.file else "")]
        parts += [f"revision {model.revision}"] if model.revision and model.revision != model.commit else []
        parts += [f"commit {model.commit}"] if model.commit else []
    else:
        parts = ["a local file" if str(model.path).endswith(".gguf") else "a local folder"]
    return ", ".join([*parts, *([f"weights {weights[:12]}"] if weights else [])])


def _stores(view: View) -> list[str]:
    """How each baseline's answers are kept, in both sizes: what the store takes, and what its float16 logits would."""
    kept = (_store(cell, outcome) for cell in view.cells if cell.baseline for outcome in cell.outcomes)
    return [line for line in kept if line is not None]


def _store(cell: CellView, outcome: Outcome) -> str | None:
    kept = plain_table(outcome.facts.get("stored_baseline"))
    stored, logits, head = (_bytes(kept.get(name)) for name in ("states_bytes", "float16_logit_bytes", "head_bytes"))
    if not stored or not logits:
        return None
    ratio = f"{logits / stored:.1f} times smaller" if logits >= stored else f"{stored / logits:.1f} times larger"
    beside = f"; the output head beside them takes {_size(head)}" if head else ""
    return (
        f"{cell.model} {cell.label} on {outcome.question.subject}: kept as {kept.get('kind')} ({kept.get('dtype')}), "
        f"{_size(stored)}, {ratio} than its logits in float16 ({_size(logits)}){beside}"
    )


def _bytes(value: object) -> float:
    return value if isinstance(value, (int, float)) else 0


def _size(count: float) -> str:
    how = display("B", [count])
    return with_unit(show(count, "B", how), how)


def _environment(environment: EnvironmentRecord) -> Markup:
    """What was installed there, folded away."""
    installed = sorted(environment.packages.items())
    which = f"Environment {environment.name} ({environment.digest[:12]}), Python {environment.python}"
    title = f"{which}: {len(installed)} packages"
    return el("details", el("summary", title), el("p", ", ".join(f"{name} {version}" for name, version in installed)))


def _facts(title: str, rows: Sequence[tuple[str, object]]) -> Markup:
    lines = [
        el("tr", el("th", name, scope="row"), el("td", _plain(name, value))) for name, value in rows if value not in (None, "")
    ]
    return el("div", el("h3", title), el("table", el("tbody", *lines), cls="facts"))


def _plain(name: str, value: object) -> str:
    """Facts for people: bytes as GB, lists joined, nested tables flattened."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)) and "Memory" in name:
        return f"{value / 1e9:.1f} GB"
    if isinstance(value, dict):
        return ", ".join(f"{k} {_plain(str(k), v)}" for k, v in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(_plain(name, v) for v in value) or "none"
    return str(value)
