from __future__ import annotations

from pathlib import Path

import pytest

from harness import store
from harness.report.view import View, view
from tests.report import synthetic


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> store.Run:
    return store.read(synthetic.write(tmp_path_factory.mktemp("results")))


@pytest.fixture(scope="session")
def shown(run: store.Run) -> View:
    return view(run)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "results"
