"""What may share prefixes; that the canary finds out who may not is in test_lm.py."""

from typing import Any

import pytest

from harness.scoring.sharing import share_limit
from tests.scoring import tiny

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def test_what_cannot_share_is_read_off_the_configuration() -> None:
    def limit(name: str, **changes: Any) -> tuple[int, str]:
        return share_limit(tiny.model(name, **changes).config)

    assert limit("Llama")[0] > 1 << 20
    assert limit("Qwen2", sliding_window=64, use_sliding_window=False)[0] > 1 << 20
    assert limit("Mistral")[0] == 24
    assert limit("Mamba")[0] == 0
    longrope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 100}
    assert limit("Llama", rope_parameters=longrope)[0] == 100
