"""Every family that people run, under every method of the main environment at 4 bits.

``python -m tests.architectures [FAMILY...]`` measures them (minutes), checks each baseline against
plain transformers, and writes docs/architectures.md anew.

A square of the table is a mean KL divergence from the baseline, or the words in which `plan` refuses, or the words in which the
cell fails. A cell that is silently wrong would have neither: its answers are held against the baseline's and its tensors
against the source's before it is measured (harness/child/bound.py, harness/methods/against_source.py).
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers as hf

from harness import store
from harness.run import runner
from harness.suite import matrix
from tests.right import families
from tests.right.cases import checkpoint
from tests.right.families import GROUPED, SIZES, sharpened
from tests.tiny_llama import VOCAB, text

PAGE = Path(__file__).parents[1] / "docs" / "architectures.md"
METHODS = ("rtn", "gptq", "awq", "autoround", "hqq", "bnb", "torchao", "quanto")
WINDOW = 64

WIDE: dict[str, Any] = {**GROUPED, "hidden_size": 128, "intermediate_size": 256}


def _of(name: str, /, *, kind: str = "", **config: Any) -> Callable[[], Any]:
    """The causal LM `nameForCausalLM` of transformers, of its config class or of that of another `kind`."""

    def make() -> Any:
        return sharpened(getattr(hf, f"{name}ForCausalLM")(getattr(hf, f"{kind or name}Config")(**config)))

    return make


def _plain(**config: Any) -> dict[str, Any]:
    return {**SIZES, "hidden_size": 128, **config}


FAMILIES: dict[str, Callable[[], Any]] = {
    "Llama": _of("Llama", **WIDE),
    "Mistral": _of("Mistral", **WIDE, sliding_window=32),
    "Qwen2": _of("Qwen2", **WIDE),
    "Qwen3": _of("Qwen3", **WIDE, head_dim=32),
    "Gemma 2": _of("Gemma2", **WIDE, head_dim=32, sliding_window=32, query_pre_attn_scalar=32),
    "Gemma 3 (text)": _of("Gemma3", kind="Gemma3Text", **WIDE, head_dim=32, sliding_window=32, query_pre_attn_scalar=32),
    "Gemma 3 (with vision)": families.gemma3,
    "Phi-3": _of("Phi3", **WIDE, original_max_position_embeddings=256),
    "Mixtral": families.mixtral,
    "Qwen2-MoE": families.qwen2_moe,
    "Qwen3-MoE": _of(
        "Qwen3Moe", **{**WIDE, "moe_intermediate_size": 64, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 32}
    ),
    "OLMoE": families.olmoe,
    "OLMo 2": _of("Olmo2", **WIDE),
    "GPT-2": families.gpt2,
    "GPT-Neo": _of(
        "GPTNeo",
        vocab_size=VOCAB,
        hidden_size=128,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=16,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "GPT-NeoX": families.gpt_neox,
    "OPT": _of("OPT", **_plain(ffn_dim=256, word_embed_proj_dim=128)),
    "Bloom": _of("Bloom", vocab_size=VOCAB, hidden_size=128, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2, pad_token_id=0),
    "Falcon": families.falcon,
    "StableLM": _of("StableLm", **WIDE),
    "Granite": _of("Granite", **WIDE),
    "Cohere": _of("Cohere", **WIDE),
    "SmolLM3": _of("SmolLM3", **WIDE),
    "Mamba": _of(
        "Mamba",
        vocab_size=VOCAB,
        hidden_size=128,
        num_hidden_layers=2,
        state_size=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "Mamba-2": families.mamba2,
    "gpt-oss": _of(
        "GptOss",
        **GROUPED,
        intermediate_size=64,
        head_dim=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=32,
    ),
}


def measured(name: str, folder: Path) -> dict[str, str]:
    """What each column of the table says of a family."""
    torch.manual_seed(0)
    source = checkpoint(folder / "m", model=FAMILIES[name]())
    (folder / "text.txt").write_text(text(120))
    suite = folder / "family.yaml"
    suite.write_text(
        f"name: family\nmodels: [{{path: {source}}}]\nbaseline: fp32\nbits: [4]\n"
        f"methods: {{{', '.join(f'{m}: {{group_size: 32}}' if m not in ('bnb',) else 'bnb: ' for m in METHODS)}}}\n"
        f"corpora: [{{path: text.txt, window: {WINDOW}}}]\ncalibration: {{corpus: reference, samples: 16, length: 64}}\n"
        "probes: [size, perplexity, divergence]\ndevice: cpu\n"
    )
    plan = matrix.plan(suite, device="cpu", cache=folder / "cache")
    run = store.read(runner.run(plan, runner.Settings(results=folder / "results", cache=folder / "cache", threads=1)))
    said = {u.cell.method: f"refused: {u.reason}" for u in plan.unsupported}
    for record in run.records:
        method = record.cell.method
        if record.failure is not None:
            said.setdefault(
                method, f"fails: {record.failure.kind} while {record.failure.phase}: {_first(record.failure.message)}"
            )
        elif record.answer is not None:
            values = {m.metric: m.value for m in record.answer.measurements}
            if method == "fp32" and "perplexity" in values:
                said["transformers"] = _compared(values["perplexity"], source, folder / "text.txt")
            if method != "fp32" and "kl_mean" in values and not said.get(method, "").startswith("fails"):
                marks = record.answer.facts.get("marks") or []
                kl = values["kl_mean"]
                said[method] = (f"{kl:.3f}" if kl >= 0.001 else f"{kl:.0e}") + (f" (marked: {marks[0]})" if marks else "")
    return said


def _compared(ours: float, source: Path, corpus: Path) -> str:
    """The baseline's perplexity here beside that of plain transformers, one window at a time."""
    config = hf.AutoConfig.from_pretrained(source)
    model = hf.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    words: Any = hf.AutoTokenizer.from_pretrained(source)
    ids = words(corpus.read_text(encoding="utf-8"))["input_ids"]
    losses = []
    with torch.no_grad():
        for first in range(0, len(ids) - WINDOW + 1, WINDOW):
            window = torch.tensor([ids[first : first + WINDOW]])
            logits = model(input_ids=window, use_cache=False).logits[0, :-1].float()
            losses.append(torch.nn.functional.cross_entropy(logits, window[0, 1:]).item())
    theirs = math.exp(sum(losses) / len(losses))
    equal = abs(ours / theirs - 1) < 1e-4
    return "equal" if equal else f"{config.model_type}: {ours:.4f} here, {theirs:.4f} by transformers"


def _first(message: str) -> str:
    return " ".join(message.split())[:240]


def page(rows: dict[str, dict[str, str]]) -> str:
    """The table as Markdown; what does not fit a square is a note below it."""
    notes: list[str] = []

    def square(said: str, method: str) -> str:
        if len(said) <= 8:
            return said
        said = said.replace(f"{method} would leave", "it would leave")
        word = said.partition(":")[0] if not said[0].isdigit() else said.partition(" (")[0]
        if said not in notes:
            notes.append(said)
        return f"{word} [{notes.index(said) + 1}](#notes)"

    lines = [
        "# Architectures",
        "",
        "Every family that people run, as a small model with random weights, under every method of the main environment at 4 "
        "bits in groups of 32 (bnb: 64, its own). Made by `python -m tests.architectures`.",
        "",
        "A number is the mean KL divergence from the fp32 baseline, in nats, of a cell whose tensors are those of the source and "
        "whose answers passed the bound (see [definitions](definitions.md)). Random weights are harder to round than trained "
        "ones: compare within a row. *refused* is said by `plan`, before anything runs; *fails* is said by the cell. "
        "`transformers`: whether the baseline's perplexity equals that of plain transformers to a part in ten thousand.",
        "",
        f"| family | transformers | {' | '.join(METHODS)} |",
        f"|---|---|{'---|' * len(METHODS)}",
    ]
    for name, said in rows.items():
        squares = [square(said.get(column, "not measured"), column) for column in ("transformers", *METHODS)]
        lines.append(f"| {name} | {' | '.join(squares)} |")
    lines += ["", "## Notes", ""]
    lines += [f"{number}. {note.replace('|', '&#124;')}" for number, note in enumerate(notes, 1)]
    return "\n".join(lines) + "\n"


def main(names: Sequence[str]) -> None:
    kept = Path(tempfile.gettempdir()) / "architectures.json"
    rows: dict[str, dict[str, str]] = json.loads(kept.read_text()) if names and kept.is_file() else {}
    for name in names or FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            rows[name] = measured(name, Path(folder))
        kept.write_text(json.dumps(rows, indent=1))
        print(name, json.dumps(rows[name]), flush=True)
    PAGE.write_text(page({name: rows[name] for name in FAMILIES if name in rows}), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
