"""What the scoring tests share: no network, no progress bars, one tokenizer."""

import os
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

from tests.scoring import tiny


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return tiny.tokenizer()
