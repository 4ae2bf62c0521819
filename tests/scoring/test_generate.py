"""What counts as greedy generation."""

import pytest

from harness.scoring.generate import is_greedy
from tests.scoring import tiny

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def test_only_plain_argmax_counts_as_greedy() -> None:
    config = tiny.model("Llama").generation_config
    assert is_greedy({"do_sample": False, "temperature": 0.0}, config)
    assert not is_greedy({"do_sample": True, "temperature": 1.0}, config)
    assert not is_greedy({"num_beams": 2}, config)
    config.repetition_penalty = 1.1
    assert not is_greedy({"do_sample": False}, config)
