"""A running hub and somebody who uses it, new for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub.server import Hub
from tests.hub.world import TOKEN, User


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub(TOKEN).running() as running:
        yield running


@pytest.fixture
def user(tmp_path: Path, hub: Hub) -> User:
    (tmp_path / "user" / "home").mkdir(parents=True)
    return User(folder=tmp_path / "user", hub=hub)
