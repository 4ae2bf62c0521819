"""What people search for is found in the docs, with the cell that answers it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness.methods import METHODS
from harness.methods.not_offered import FAMILIES

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "families.md").read_text(encoding="utf-8")
ROWS = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in PAGE.splitlines() if line.startswith("| ")}
SEARCHED = (
    "PTQ", "QAT", "mixed precision", "dynamic quantization", "QLoRA", "GPTQ", "AWQ", "bitsandbytes", "GGML", "GGUF",
    "Neural Compressor", "TensorRT", "AutoRound", "TurboQuant", "BitNet", "vector quantization", "edge", "CPUs",
)  # fmt: skip


@pytest.mark.parametrize("word", SEARCHED)
def test_a_word_that_people_search_for_leads_to_a_cell_and_to_a_page_that_is_there(word: str) -> None:
    (cells, pages) = next(row[1:] for words, row in ROWS.items() if word in words.split(", "))
    named = {name for code in re.findall(r"`([^`]+)`", cells) for name in re.findall(r"[a-z_+]+", code)}
    assert named & METHODS.keys(), f"{word}: no method among {sorted(named)}"
    linked = re.findall(r"\]\(([\w-]*)\.?(?:md)?(?:#[\w-]+)?\)", pages)
    assert linked
    assert all(name == "" or (DOCS / f"{name}.md").is_file() for name in linked)


def test_every_method_is_found_by_some_word_or_is_what_others_are_compared_with() -> None:
    named = set(re.findall(r"[a-z0-9_+]+", " ".join(code for row in ROWS.values() for code in re.findall(r"`([^`]+)`", row[1]))))
    beside = {"fp32", "bf16", "fp16"}
    assert {name for name in METHODS if not name.startswith("fake")} - named - beside == set()


def test_the_families_that_nobody_offers_stand_there_with_their_reasons() -> None:
    for family in FAMILIES.values():
        assert f"| `{family.name}`: {family.title} | {family.why} | {family.instead} |" in PAGE
