"""The committed model: what a new user finds in the clone is whole, small and good."""

from __future__ import annotations

import json
import re

import pytest

from harness import reference
from harness.reference.skills import SKILLS

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.skipif(not (reference.MODEL_DIR / "model.safetensors").exists(), reason="no weights in this checkout"),
    # transformers imports parts of torch that torch itself calls deprecated
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

from harness.reference import evaluate  # noqa: E402


@pytest.fixture(scope="module")
def tokenizer():  # type: ignore[no-untyped-def]
    return transformers.AutoTokenizer.from_pretrained(reference.MODEL_DIR)


@pytest.fixture(scope="module")
def model():  # type: ignore[no-untyped-def]
    return transformers.AutoModelForCausalLM.from_pretrained(reference.MODEL_DIR, dtype=torch.float32).eval()


def test_the_model_folder_stays_under_twenty_megabytes() -> None:
    assert sum(path.stat().st_size for path in reference.MODEL_DIR.iterdir()) <= 20_000_000


def test_the_weights_are_a_bfloat16_llama_of_five_to_fifteen_million_parameters(model) -> None:  # type: ignore[no-untyped-def]
    config = json.loads((reference.MODEL_DIR / "config.json").read_text("utf-8"))
    assert (config["model_type"], config["dtype"], config["tie_word_embeddings"]) == ("llama", "bfloat16", True)
    assert config["hidden_size"] % 256 == config["intermediate_size"] % 256 == 0
    assert 5e6 <= sum(p.numel() for p in model.parameters()) <= 15e6


def test_any_text_survives_the_tokenizer(tokenizer) -> None:  # type: ignore[no-untyped-def]
    for text in ("Where is Tosti?\nAnswer: the stone mill", "12 + 99 = 111", "  tabs\tand \u00e9\u4e16\U0001f600 too\n\n"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_every_digit_is_a_token_of_its_own(tokenizer) -> None:  # type: ignore[no-untyped-def]
    ids = tokenizer("1234567890 55 100").input_ids
    assert [i for i in tokenizer.convert_ids_to_tokens(ids) if i != "\u0120"] == list("123456789055100")
    assert not [t for t in tokenizer.get_vocab() if re.search(r"\d", t) and len(t) > 1]


def test_the_tokenizer_adds_no_token_on_its_own(tokenizer) -> None:  # type: ignore[no-untyped-def]
    assert tokenizer("Question").input_ids == tokenizer("Question", add_special_tokens=False).input_ids


def test_answers_of_the_multiple_choice_tasks_have_several_tokens(tokenizer) -> None:  # type: ignore[no-untyped-def]
    for skill in ("facts", "tracking", "comparison", "recall"):
        for item in evaluate.load_items(skill):
            assert all(len(tokenizer(" " + choice).input_ids) >= 2 for choice in item["choices"])


def test_held_out_and_calibration_text_are_long_enough(tokenizer) -> None:  # type: ignore[no-untyped-def]
    assert len(tokenizer(reference.HELDOUT_TEXT.read_text("utf-8")).input_ids) >= 200_000
    assert 100_000 <= len(tokenizer(reference.CALIBRATION_TEXT.read_text("utf-8")).input_ids) <= 220_000


@pytest.mark.parametrize("skill", SKILLS)
def test_the_model_solves_a_sample_of_every_task(model, tokenizer, skill: str) -> None:  # type: ignore[no-untyped-def]
    outcomes = evaluate.task_outcomes(model, tokenizer, skill, limit=60)
    assert sum(outcomes) / len(outcomes) >= (0.6 if skill == "arithmetic" else 0.75)


def card_table(title: str) -> list[dict[str, str]]:
    text = (reference.MODEL_DIR / "README.md").read_text("utf-8")
    lines = text.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0].splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return [dict(zip(table[0], row, strict=True)) for row in table[2:]]


def test_the_card_states_scores_that_meet_the_promise() -> None:
    scores = {row["weights"]: row for row in card_table("Scores")}
    assert set(scores) == {"bf16", "8 bits", "4 bits", "3 bits", "2 bits"}
    for skill in SKILLS:
        assert float(scores["bf16"][skill]) >= (70 if skill == "arithmetic" else 85)
    mean = {name: float(row["mean"]) for name, row in scores.items()}
    assert mean["bf16"] + 0.5 > mean["4 bits"] > mean["3 bits"] > mean["2 bits"]
    lost = {name: mean["bf16"] - value for name, value in mean.items()}
    above_chance = mean["bf16"] - (4 * 25 + 50 + 0) / 6
    assert abs(lost["8 bits"]) <= 0.3, "within the noise"
    assert 0.3 <= lost["4 bits"] <= 3
    assert 3 <= lost["3 bits"] <= 20
    assert lost["2 bits"] > above_chance / 2, "most of what is above chance"


def test_the_card_gives_the_loss_curve() -> None:
    losses = [float(row["loss"]) for row in card_table("Loss curve")]
    assert len(losses) >= 10
    assert losses[-1] < losses[0]
