"""docs/hub.md does what it shows, on a hub that has the repositories that it names."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from tests.hub.server import Hub
from tests.hub.test_data_of_the_hub import rows
from tests.hub.test_gguf_of_the_hub import written
from tests.hub.world import ROOT, User, checkpoint
from tests.test_docs import blocks

PAGE = ROOT / "docs" / "hub.md"

TEXTS = b"""---
configs:
- config_name: wikitext-2-raw-v1
  data_files: [{split: test, path: test.jsonl}, {split: train, path: train.jsonl}]
- config_name: wikitext-103-raw-v1
  data_files: [{split: test, path: test.jsonl}, {split: train, path: train.jsonl}, {split: validation, path: test.jsonl}]
---
"""

QUESTIONS = b"""---
configs:
- config_name: ARC-Easy
  data_files: [{split: test, path: test.jsonl}, {split: train, path: test.jsonl}, {split: validation, path: test.jsonl}]
---
"""


def test_the_suite_of_the_page_can_be_planned(user: User, hub: Hub, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    (suite,) = blocks(PAGE, "yaml")
    (user.folder / "shown.yaml").write_text(suite)
    for repo in ("Qwen/Qwen3-0.6B-Base", "HuggingFaceTB/SmolLM2-135M"):
        hub.model(repo).commit(checkpoint())
    hub.model("unsloth/Qwen3-0.6B-Base-GGUF").commit(written(tmp_path / "gguf", "Qwen3-0.6B-Base-Q4_K_M"))
    hub.data_set("Salesforce/wikitext").commit({"README.md": TEXTS, "test.jsonl": rows(300, 0), "train.jsonl": rows(300, 1)})
    hub.data_set("allenai/ai2_arc").commit({"README.md": QUESTIONS, "test.jsonl": rows(30, 0)})
    cells = user.planned(user.folder / "shown.yaml")
    assert [c["cell"]["label"] for c in cells][-1] == "Qwen3-0.6B-Base-Q4_K_M.gguf gguf Q8_0"  # type: ignore[index]
    assert all(c["estimated_bytes"] for c in cells)


def test_the_commands_of_the_page_run_as_shown(user: User, hub: Hub) -> None:
    hub.model("lab/tiny").commit(checkpoint())
    user.suite("[lab/tiny]")
    user.harness("run", "mine.yaml")
    lines = [line for block in blocks(PAGE, "sh") for line in block.splitlines()]
    shown = [line for line in lines if line.startswith("HF_")]
    assert len(shown) == 2
    for line in shown:
        variable, program, *arguments = shlex.split(line)
        name, _, value = variable.partition("=")
        assert program == "quant-harness"
        user.harness(*arguments, code=0, **{name: value})
    assert [line for line in lines if not line.startswith("HF_")] == ["hf auth login"]
