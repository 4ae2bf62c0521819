"""Mistakes that people make in suites, and the table of what each is answered with: ``python -m tests.mistakes`` writes
docs/mistakes.md anew."""

from __future__ import annotations

import tempfile
from pathlib import Path

from harness.errors import BadInput
from harness.suite import matrix

PAGE = Path(__file__).parents[1] / "docs" / "mistakes.md"
START = "name: mine\nmodels: [reference]\n"
TWO = "methods: {bf16: , rtn: }\n"

MISTAKES: tuple[str, ...] = (
    'name: mine\nmodels: [reference]\nbits: "4"\n' + TWO,
    "name: mine\nmodels: [reference]\nbits: int4\n" + TWO,
    "name: mine\nmodels: [reference]\nbits: 4\n" + TWO,
    "name: mine\nmodels: [reference]\nbits: [8, four]\n" + TWO,
    START + 'methods: {bf16: , rtn: {bits: "4"}}',
    START + "methods: {bf16: , rtn: {bits: int4}}",
    START + "methods: {bf16: , rtn: {bits: 5}}",
    START + "methods: [bf16, rtn]",
    START + "methods: rtn",
    START + "methods: {bf16: , RTN: }",
    START + "methods: {bf16: , gtpq: }",
    START + "methods: {bf16: , rtn: 4}",
    START + "methods: {bf16: , rtn: {groupsize: 64}}",
    START + "methods: {bf16: , rtn: {group_size: 100}}",
    START + 'methods: {bf16: , rtn: {sym: "yes"}}',
    START + "methods: {bf16: , rtn: {calibration: {samples: 8}}}",
    START + "methods: {bf16: , gptq: {calibration: 8}}",
    START + "methods: {bf16: , quanto: {bits: 8, group_size: 64}}",
    START + "methods: {bf16: , hqq: {group_size: channel}}",
    START + "methods: {bf16: , rtn: {bits: 4, dynamic: nowhere.yaml}}",
    START + "methods: {bf16: , rtn: {bits: 4, dynamic: ../apart.yaml}}",
    START + "methods: {bf16: , rtn: {bits: 4, dynamic: mine.yaml}}",
    START + "methods: {bf16: , rtn: {bits: 4, dynamic: {down_proj: 8}}}",
    START + "methods: {bf16: , awq: {bits: 4, dynamic: layers.yaml}}",
    START + "methods: {bf16: , gptq: {target_bits: 4, dynamic: layers.yaml}}",
    START + "methods: {bf16: , llmcompressor: {recipe: layers.yaml, group_size: 64}}",
    START + "methods: {bf16: , bnb: {bits: 8, double_quant: true}}",
    START + TWO + "method: {rtn: }",
    START + TWO + "Bits: [4]",
    START + TWO + "group_size: 64",
    START + TWO + "window: 512",
    START + TWO + "num_fewshot: 5",
    START + TWO + "batch_size: 8",
    START + TWO + "bits: [4]\nbits: [3]",
    START + TWO + "device: gpu",
    START + TWO + "device: cuda0",
    START + TWO + "baseline: fp17",
    START + TWO + "tasks: arc_easy",
    START + TWO + "tasks: [reference_fact]",
    START + TWO + "tasks: [{task: reference_facts, shot: 5}]",
    START + TWO + "tasks: [{name: reference_facts}]",
    START + TWO + "tasks: [5]",
    START + TWO + "tasks: [{task: reference_facts, chat_template: true}]",
    START + TWO + 'tasks: [{task: reference_facts, chat_template: "true"}]',
    START + TWO + "tasks: [{task: reference_facts, chat_template: 1}]",
    START + TWO + "tasks: [{task: reference_facts, apply_chat_template: true}]",
    START + TWO + "tasks: [{task: reference_facts, multiturn: true}]",
    START + TWO + 'tasks: [{task: reference_facts, multiturn: "yes"}]',
    START + TWO + "tasks: [reference_facts]\nmultiturn: true",
    START + TWO + "tasks: [reference_facts]\nsystem: {text: Be brief.}",
    START + TWO + "tasks: [reference_facts]\nsystem_instruction: Be brief.",
    START + TWO + "corpora: [reference]\nchat_template: true",
    START + TWO + "tasks: {task: reference_facts}",
    START + TWO + "corpora: wikitext2",
    START + TWO + "corpora: [wikitext3]",
    START + TWO + "corpora: [{path: nowhere.txt}]",
    START + TWO + "corpora: [{corpus: reference, windw: 256}]",
    START + TWO + "corpora: [{corpus: reference, window: 100000}]",
    START + TWO + "limit: none",
    START + TWO + "limit: 0",
    START + TWO + "margin: 0.02",
    START + TWO + "budget: all",
    START + TWO + "budget: auto\nmargin: 1 point",
    START + TWO + "budget: auto\nmargin: 1",
    START + TWO + "latency: {prompt: 128}",
    START + TWO + "latency: {promt: [128]}",
    START + TWO + "memory: 512",
    START + TWO + "serving: {concurrency: [0]}",
    START + TWO + "calibration: 128",
    START + TWO + "calibration: {sample: 128}",
    START + TWO + "probes: size",
    START + TWO + "probes: [sizes]",
    START + TWO + "timeout: 1h",
    START + TWO + "seed: x",
    START + TWO + "include: {method: rtn, bits: 8}",
    START + TWO + "include: [{bits: 8}]",
    START + "bits: []\n" + TWO,
    START + "bits: [true]\n" + TWO,
    START + "bits: [-4]\n" + TWO,
    START + "bits: [.nan]\n" + TWO,
    START + "methods: {bf16: , rtn: {bits: []}}",
    START + "methods: {bf16: , rtn: {bits: 4, group_size: []}}",
    START + "methods: {bf16: , rtn: {bits: [true]}}",
    START + "methods: {bf16: , rtn: {bits: 4, sym: [true, 1]}}",
    START + "methods: {bf16: , rtn: {group_size: '64'}}",
    START + "methods: {bf16: , rtn: {sym: 'false'}}",
    START + "methods: {bf16: , rtn: {bits: 4, bits: 3}}",
    START + "methods: {bf16: , gguf: {bits: 4, type: q4_k_m}}",
    START + "methods: {bf16: , gptq: {damp: 1}}",
    START + "methods: {bf16: , gptq: {damp: -5}}",
    START + "methods: {bf16: , gptq: {damp: .nan}}",
    START + "methods: {bf16: , rtn: {target_bits: 1.5}}",
    START + "methods: {bf16: , rtn: {target_bits: four}}",
    START + "methods: {bf16: , rtn: {target_bits: 3.5, widths: [2, 5]}}",
    START + "methods: {bf16: , rtn: {target_bits: 3.5, from: imatrix}}",
    START + "methods: {bf16: , rtn: {widths: [2, 4]}}",
    START + "methods: {bf16: , hqq: {target_bits: 3.5}}",
    START + "methods: {bf16: , gguf: {target_bits: 3.5, type: Q4_K_M}}",
    START + "methods: {bf16: , rtn: }\ninclude: [{method: rtn, bits: 4, target_bits: 3.5}]",
    START + "methods: {bf16: , gptq: {damp: true}}",
    START + "methods: {bf16: , gptq: {mse: -1}}",
    START + "methods: {bf16: , gptq: {mse: 100}}",
    START + "methods: {bf16: , gptq: {mse: true}}",
    START + "methods: {bf16: , awq: {group_size: -1}}",
    START + "methods: {bf16: , gptq: {group_size: 64.5}}",
    START + "methods: {bf16: , gptq: {calibration: {samples: 1000000000}}}",
    START + "methods: {bf16: , gptq: {calibration: {samples: true}}}",
    START + "methods: {bf16: , gptq: {calibration: {length: 512.5}}}",
    START + "methods: {bf16: , gptq: {calibration: {seed: -1}}}",
    START + "methods: {bf16: , autogptq: {damp: 0}}",
    START + "methods: {bf16: , autoround: {iters: -1}}",
    START + "methods: {bf16: , autoround: {iters: 2.5}}",
    START + "methods: {bf16: , autoround: {iters: true}}",
    START + "methods: {bf16: , autoround: {iters: .inf}}",
    START + "methods: {bf16: , openvino: {bits: 4, ratio: 1.5}}",
    START + "methods: {bf16: , openvino: {bits: 4, ratio: 0}}",
    START + "methods: {bf16: , openvino: {bits: 4, ratio: half}}",
    START + "methods: {bf16: , llmcompressor: {bits: 8, smooth: -0.5}}",
    START + "methods: {bf16: , llmcompressor: {bits: 8, smooth: 2}}",
    START + "methods: {bf16: , quanto: {bits: 4, group_size: 0}}",
    START + "methods: {bf16: , hqq: {axis: 2}}",
    START + "methods: {bf16: , hqq: {axis: true}}",
    START + "methods: {bf16: , gptq: {calibration: {sample: 8}}}",
    START + "methods: {bf16: , gptq: {calibration: {samples: eight}}}",
    START + "methods: {bf16: , gptq: {calibration: {samples: 0}}}",
    START + "methods: {bf16: , gptq: {calibration: {corpus: 5}}}",
    START + "methods: {bf16: , gptq: {calibration: {path: x}}}",
    START + "calibration: {corpus: ./x.txt}\nmethods: {bf16: , gptq: }",
    START + "methods: {null: }",
    START + TWO + "exclude: [rtn]",
    START + TWO + "exclude: [{methd: rtn}]",
    START + TWO + "exclude: [{method: rnt}]",
    START + TWO + 'exclude: [{method: rtn, bits: "4"}]',
    START + TWO + "exclude: [{method: rtn, bits: 5}]",
    START + TWO + "exclude: [{}]",
    START + TWO + "exclude: [{method: bf16}]",
    START + TWO + "probes: []",
    START + TWO + "probes: [perplexity]",
    START + TWO + "latency: {prompt: [0], batch: [0]}",
    START + TWO + "latency: {prompt: [5000]}",
    START + TWO + "memory: {prompt: 5000}",
    START + TWO + "latency: {new: 100000}",
    START + TWO + "memory: {new: 100000}",
    START + TWO + "seed: 99999999999999999999999",
    START + TWO + "corpora: [{corpus: reference, window: 256, definition: foo}]",
    START + TWO + "corpora: [./x.txt]",
    START + TWO + "tasks: ['']",
    START + TWO + "tasks: [{task: reference_facts, shots: 100000}]",
    "name:\nmodels: [reference]\n" + TWO,
    "name: ..\nmodels: [reference]\n" + TWO,
    "name: mine\nmodels: [https://huggingface.co/Qwen/Qwen3-0.6B]\n" + TWO,
    "name: mine\nmodels: [Qwen/Qwen3-0.6B@main]\n" + TWO,
    "name: my suite\nmodels: [reference]\n" + TWO,
    "models: [reference]\n" + TWO,
    "name: mine\n" + TWO,
    "name: mine\nmodels: reference\n" + TWO,
    "name: mine\nmodels: [{path: nowhere}]\n" + TWO,
    START + "methods:\n\tbf16:",
    START + "methods: {bf16: , rtn: {bits: [4, 3}}",
    "- name: mine",
    "",
)


def answer(text: str, folder: Path) -> str:
    """What a suite is answered with, its file called mine.yaml."""
    path = folder / "mine.yaml"
    path.write_text(text + "\n")
    try:
        matrix.plan(path, device="cpu")
    except BadInput as error:
        return str(error).replace(f"{folder}/", "")
    return "no mistake"


def page() -> str:
    """The table as Markdown."""
    head = (
        "# Mistakes in suites\n\n"
        "What `quant-harness plan` and `run` answer to a suite that is not one. Made by `python -m tests.mistakes`; a test "
        "compares it with what is answered today.\n\n| what is written | what is answered |\n|---|---|\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        rows = [(text, answer(text, Path(folder).resolve())) for text in MISTAKES]
    return head + "".join(f"| {_code(_shown(text))} | {_cell(said)} |\n" for text, said in rows)


def _shown(text: str) -> str:
    """The lines that matter: without those that every suite here has."""
    lines = text.removeprefix(START).split("\n")
    kept = [line for line in lines if line + "\n" not in (TWO,)]
    return "\n".join(kept).strip("\n") or "(nothing)"


def _code(text: str) -> str:
    return "<br>".join(f"`{line}`".replace("|", "\\|").replace("\t", "→") for line in text.split("\n") if line)


def _cell(text: str) -> str:
    return "<br>".join(text.replace("|", "\\|").replace("<", "&lt;").split("\n"))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
