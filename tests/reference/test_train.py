"""The training script, on tiny settings: stopping and going on changes nothing, export is a Llama."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tokenizers import Tokenizer  # noqa: E402

from harness import reference  # noqa: E402
from harness.reference import corpus, network, world  # noqa: E402
from harness.reference import train as training  # noqa: E402

# transformers imports parts of torch that torch itself calls deprecated
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

TINY = network.Shape(hidden=64, intermediate=128, layers=2, heads=2, context=128)
RECIPE = training.Recipe(minutes=None, steps=6, rows=2, row_tokens=64, warmup_steps=2, compile=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    out = tmp_path / "run"
    out.mkdir()
    Tokenizer.from_file(str(reference.MODEL_DIR / "tokenizer.json")).save(str(out / "tokenizer.json"))
    return out


def start(folder: Path) -> training.Run:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return training.Run(RECIPE, TINY, world.World(), tokenizer, "cpu")


def test_a_stopped_and_resumed_run_ends_with_the_same_weights(folder: Path) -> None:
    whole = training.train(RECIPE, folder, resume=False, export_to=None, shape=TINY)
    half = start(folder)
    for _ in range(3):
        half.train_step()
    half.save(folder / "checkpoint.pt")
    resumed = training.train(RECIPE, folder, resume=True, export_to=None, shape=TINY)
    assert resumed.step == whole.step == 6
    assert resumed.tokens == whole.tokens
    for name, weight in whole.network.state_dict().items():
        assert torch.equal(weight, resumed.network.state_dict()[name]), name


def test_training_into_a_used_folder_without_resume_is_refused(folder: Path) -> None:
    start(folder).save(folder / "checkpoint.pt")
    with pytest.raises(FileExistsError, match="--resume"):
        training.train(RECIPE, folder, resume=False, export_to=None, shape=TINY)


def test_a_checkpoint_of_another_shape_is_refused(folder: Path) -> None:
    start(folder).save(folder / "checkpoint.pt")
    with pytest.raises(ValueError, match="another shape"):
        training.train(RECIPE, folder, resume=True, export_to=None, shape=replace(TINY, layers=1))


def test_export_agrees_with_transformers(folder: Path) -> None:
    run = start(folder)
    run.train_step()
    training.export(run.network, run.packer.tokenizer, folder / "model")
    names = {path.name for path in (folder / "model").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names


def test_a_row_holds_whole_documents_and_padding_is_not_trained_on(folder: Path) -> None:
    run = start(folder)
    inputs, targets = run.packer.batch(8, 256, level=1.0)
    assert inputs.shape == targets.shape == (8, 256)
    assert bool((inputs >= 0).all())
    padded = targets == network.IGNORED
    assert 0 < int(padded.sum()) < 0.2 * targets.numel()
    kept = ~padded[:, :-1]
    assert torch.equal(inputs[:, 1:][kept], targets[:, :-1][kept])


def test_the_update_of_muon_is_nearly_orthogonal() -> None:
    batch = torch.randn(2, 16, 48, generator=torch.Generator().manual_seed(0))
    update = training._orthogonalized(batch, training.Muon.COEFFICIENTS)
    sizes = torch.linalg.svdvals(update)
    assert float(sizes.min()) > 0.5
    assert float(sizes.max()) < 1.5


def test_facts_are_taught_first_and_stories_get_as_hard_as_the_tasks() -> None:
    first, easy = training.lesson_at(0.0)
    _, hard = training.lesson_at(1.0)
    assert first.shares["facts"] > 0.5
    assert easy < hard == corpus.LEVEL
    assert all(min(lesson.shares.values()) > 0 for lesson in training.LESSONS)
    for lesson in training.LESSONS:
        assert abs(sum(lesson.shares.values()) - 1) < 1e-9


def test_a_checkpoint_is_kept_where_a_lesson_ends(folder: Path) -> None:
    training.train(RECIPE, folder, resume=False, export_to=None, shape=TINY)
    assert (folder / "lesson-1.pt").exists()
    assert 0 < torch.load(folder / "lesson-1.pt", weights_only=True)["step"] < 6


def test_the_learning_rate_warms_up_stays_and_falls_to_zero() -> None:
    recipe = training.Recipe()
    assert training.rate_factor(0, 0.0, recipe) < 0.05
    assert training.rate_factor(1000, 0.5, recipe) == 1.0
    assert 0 < training.rate_factor(2000, 0.9, recipe) < 0.5
    assert training.rate_factor(2500, 1.0, recipe) == 0.0
