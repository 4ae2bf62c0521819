"""What all tests share: no network, the fakes switched on, folders of their own, and a model folder small enough to copy."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

os.environ["QUANT_HARNESS_FAKES"] = "1"  # before harness is imported: METHODS and PROBES are built at import
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest

from tests import tiny_folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or fills the user's cache."""
    monkeypatch.setenv("QUANT_HARNESS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A folder that looks like a checkpoint: enough for everything that does not load weights."""
    folder = tmp_path / "tiny"
    tiny_folder.write(folder)
    return folder


@pytest.fixture
def write_suite(tmp_path: Path, model_folder: Path) -> Callable[..., Path]:
    """Writes a suite of fake cells: `write_suite("{bits: 4, on_a: crash}", ...)` beside a 16-bit baseline."""

    def write(*cells: str, name: str = "scripted", extra: str = "") -> Path:
        path = tmp_path / f"{name}.yaml"
        lines = [
            f"name: {name}",
            f"models: [{{path: {model_folder}, name: tiny}}]",
            "baseline: fake 16-bit",
            "probes: [quantize, fake]",
            "methods:",
            "  fake:",
            "    - {bits: 16}",
            *(f"    - {cell}" for cell in cells),
            extra,
        ]
        path.write_text("\n".join(lines) + "\n")
        return path

    return write


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of the memory probe come first: they weigh this very process, with all that other tests have left in it."""
    items.sort(key=lambda item: item.path.name != "test_memory.py")
