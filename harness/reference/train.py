"""Train a reference model from nothing: seeded, resumable, at most two hours on two CPU cores, faster on a GPU.

    python -m harness.reference.train --out DIR                     # forty minutes on two cores with 16-bit units
    python -m harness.reference.train --out DIR --resume            # go on after a stop
    python -m harness.reference.train --out DIR --minutes 60        # by the clock instead of by steps
    python -m harness.reference.train --out DIR --export-only       # write the latest checkpoint as a model
    python -m harness.reference.train --out DIR --ternary           # the sibling of 1.58 bits, by the same recipe; then
    python -m tools.pack_ternary DIR                            # pack its latest checkpoint

What it promises: a run that was stopped and resumed gives the same weights as one that was not (the checkpoint
holds weights, both optimizers' state, the position in the corpus and the packer's leftovers). The parameter
names are those of transformers' Llama, so export renames nothing, and export refuses to write a model whose
logits differ from transformers' own.

The shipped weights are this run's; the model card has their scores and says how the lessons came about.

Why the numbers are what they are: a CPU with 16-bit matrix units trains 2.8 times as fast in bfloat16 autocast as in
float32 (one without them is faster in float32, so there it stays), and windows of 256 tokens cost two thirds of windows
of 512; so it trains on 256-token windows and turns to 512-token windows (same tokens per step) for the last stretch.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from harness.files import draft_file, drafts_into
from harness.measure import machine
from harness.reference import MODEL_DIR
from harness.reference.corpus import MIXTURE, Mixer
from harness.reference.network import IGNORED, ReferenceModel, Shape
from harness.reference.reserved import bucket
from harness.reference.tokenizer import END, save_tokenizer, train_tokenizer
from harness.reference.world import SEED, World

STEPS = 5600


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to train. Either `minutes` or `steps` ends the run; progress 0..1 drives every schedule."""

    minutes: float | None = None
    steps: int | None = STEPS
    seed: int = SEED
    rows: int = 16  # per step, of `row_tokens`
    row_tokens: int = 256
    long_rows_from: float = 0.85  # progress from which rows are twice as long and half as many
    matrix_rate: float = 0.006  # Muon, for all matrices but the embedding
    vector_rate: float = 0.002  # AdamW, for the embedding and the norms
    matrix_decay: float = 0.05
    momentum: float = 0.95
    warmup_steps: int = 60
    decay_from: float = 0.60  # progress from which the rates fall linearly to zero
    save_minutes: float = 4.0
    compile: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """What is taught up to `until` (progress 0..1): shares of the skills, and the level at its begin and end."""

    until: float
    levels: tuple[float, float]
    shares: Mapping[str, float]


# Facts come first, with easy stories and lists beside them: looking back in the context by name is learnt once names of several
# tokens are known, and then by itself. Taught orders come slowly, because every pair says one bit of them, so they get more of
# the end. Tried and not needed: a lesson of pure repetition after the first (it costs what was known and gives nothing); tried
# and worse: repetition before anything else (a model then finds *which* things were in a list and not whose they were).
# Arithmetic is learned by then and hardly practised in the last lesson, which leaves it a margin that three bits use up.
LESSONS = (
    Lesson(
        until=0.325,
        levels=(0.2, 0.2),
        shares={
            "facts": 0.60, "tracking": 0.06, "comparison": 0.10, "agreement": 0.05, "arithmetic": 0.14, "recall": 0.05,
        },
    ),
    Lesson(
        until=0.50,
        levels=(0.2, 0.6),
        shares={
            "facts": 0.36, "tracking": 0.20, "comparison": 0.12, "agreement": 0.03, "arithmetic": 0.12, "recall": 0.17,
        },
    ),
    Lesson(until=0.70, levels=(0.6, 0.8), shares=MIXTURE),
    Lesson(
        until=1.0,
        levels=(0.8, 0.8),
        shares={
            "facts": 0.42, "tracking": 0.14, "comparison": 0.31, "agreement": 0.03, "arithmetic": 0.01, "recall": 0.09,
        },
    ),
)  # fmt: skip


def lesson_at(progress: float) -> tuple[Lesson, float]:
    """The lesson that is taught at `progress`, and its level there."""
    begin = 0.0
    for lesson in LESSONS:
        if progress < lesson.until or lesson is LESSONS[-1]:
            low, high = lesson.levels
            return lesson, low + (high - low) * min(1.0, (progress - begin) / (lesson.until - begin))
        begin = lesson.until
    raise AssertionError("the last lesson ends at 1")


# --------------------------------------------------------------------------------------------- optimizer


class Muon:
    """Momentum whose update is orthogonalized (Jordan et al. 2024), batched over equal shapes.

    torch's own `torch.optim.Muon` does one matrix at a time in bfloat16, which on a CPU without 16-bit matrix units costs
    a third of a training step; this costs a tenth.
    """

    COEFFICIENTS = (3.4445, -4.7750, 2.0315)

    def __init__(
        self, parameters: Sequence[nn.Parameter], *, momentum: float, decay: float, dtype: torch.dtype = torch.float32
    ) -> None:
        self.dtype = dtype  # of the orthogonalization; momenta and parameters stay in float32
        by_shape: dict[tuple[int, ...], list[nn.Parameter]] = {}
        for parameter in parameters:
            by_shape.setdefault(tuple(parameter.shape), []).append(parameter)
        self.groups = list(by_shape.values())
        self.momenta = [torch.zeros(len(g), *g[0].shape, device=g[0].device) for g in self.groups]
        self.momentum, self.decay = momentum, decay

    def step(self, rate: float) -> None:
        with torch.no_grad():
            self._step(rate)

    def _step(self, rate: float) -> None:
        for group, momentum in zip(self.groups, self.momenta, strict=True):
            gradient = torch.stack([cast(Tensor, p.grad) for p in group]).float()
            momentum.lerp_(gradient, 1 - self.momentum)
            update = _orthogonalized(gradient.lerp_(momentum, self.momentum).to(self.dtype), self.COEFFICIENTS)
            rows, columns = group[0].shape
            size = rate * max(1.0, rows / columns) ** 0.5
            for parameter, change in zip(group, update, strict=True):
                parameter.mul_(1 - rate * self.decay).add_(change.float(), alpha=-size)
                parameter.grad = None


def _orthogonalized(batch: Tensor, coefficients: tuple[float, float, float]) -> Tensor:
    """Newton-Schulz iteration towards U V^T for each matrix of [matrices, rows, columns]."""
    a, b, c = coefficients
    x: torch.Tensor = batch / (batch.norm(dim=(1, 2), keepdim=True) + 1e-7)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


# -------------------------------------------------------------------------------------------------- data


class Packer:
    """Fills rows with whole documents, so that no answer is cut from its question.

    Documents are parted by the end token or by a blank line (the digest decides), because evaluation meets both.
    A small pool lets a short document close a gap; what stays open is padded and not trained on.
    """

    POOL = 64

    def __init__(self, mixer: Mixer, tokenizer: Tokenizer) -> None:
        self.mixer, self.tokenizer = mixer, tokenizer
        self.end = cast(int, tokenizer.token_to_id(END))
        self.blank = list(tokenizer.encode("\n\n").ids)
        self.pool: list[list[int]] = []

    def row(self, length: int, *, level: float) -> list[int]:
        """`length` + 1 tokens; padding is -1."""
        row: list[int] = []
        while True:
            while len(self.pool) < self.POOL:
                text = self.mixer.next(level=level)
                ids = list(self.tokenizer.encode(text).ids)
                self.pool.append(ids + ([self.end] if bucket(text, buckets=2) else self.blank))
            room = length + 1 - len(row)
            fitting = next((i for i, ids in enumerate(self.pool) if len(ids) <= room), None)
            if fitting is None:
                break
            row += self.pool.pop(fitting)
        if not row:
            row = self.pool.pop(0)[: length + 1]
        return row + [-1] * (length + 1 - len(row))

    def batch(self, rows: int, length: int, *, level: float) -> tuple[Tensor, Tensor]:
        """Inputs and targets, both [rows, length]."""
        tokens = torch.tensor([self.row(length, level=level) for _ in range(rows)])
        return tokens[:, :-1].clamp(min=0), tokens[:, 1:].masked_fill(tokens[:, 1:] < 0, IGNORED)


# -------------------------------------------------------------------------------------------------- run


def rate_factor(step: int, progress: float, recipe: Recipe) -> float:
    """Warm-up, plateau, linear decay to zero."""
    warm = min(1.0, (step + 1) / recipe.warmup_steps)
    return warm * min(1.0, max(0.0, (1 - progress) / (1 - recipe.decay_from)))


def has_16_bit_units() -> bool:
    """Whether this CPU multiplies bfloat16 matrices faster than float32 ones."""
    return not machine.cpu_flags().isdisjoint({"avx512_bf16", "amx_bf16"})


class Run:
    """All state of a training run: what a checkpoint must hold is what this class holds."""

    def __init__(self, recipe: Recipe, shape: Shape, world: World, tokenizer: Tokenizer, device: str) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.shape, self.device = recipe, shape, device
        self.network = ReferenceModel(shape).to(device)
        matrices = [p for n, p in self.network.named_parameters() if p.ndim == 2 and "embed" not in n]
        others = [p for n, p in self.network.named_parameters() if p.ndim == 1 or "embed" in n]
        self.dtype = torch.bfloat16 if device != "cpu" or has_16_bit_units() else torch.float32
        self.muon = Muon(matrices, momentum=recipe.momentum, decay=recipe.matrix_decay, dtype=self.dtype)
        self.adam = torch.optim.AdamW(others, lr=recipe.vector_rate, betas=(0.9, 0.95), weight_decay=0.0)
        self.packer = Packer(Mixer(world, mixture=MIXTURE), tokenizer)
        self.step, self.tokens, self.seconds = 0, 0, 0.0
        self.log: list[dict[str, float]] = []
        self.loss: Callable[[Tensor, Tensor], Tensor] = (
            torch.compile(self.network, dynamic=False) if recipe.compile else self.network
        )

    @property
    def progress(self) -> float:
        if self.recipe.steps is not None:
            return self.step / self.recipe.steps
        return self.seconds / (60.0 * cast(float, self.recipe.minutes))

    def train_step(self) -> float:
        """One update; returns the loss in nats per token before it."""
        started = time.perf_counter()
        recipe, progress = self.recipe, self.progress
        longer = 2 if progress >= recipe.long_rows_from and recipe.row_tokens * 2 <= self.shape.context else 1
        lesson, level = lesson_at(progress)
        self.packer.mixer.mixture = dict(lesson.shares)
        inputs, targets = self.packer.batch(recipe.rows // longer, recipe.row_tokens * longer, level=level)
        kept = int((targets != IGNORED).sum())
        inputs, targets = inputs.to(self.device), targets.to(self.device)
        with torch.autocast(self.device, self.dtype, enabled=self.dtype is not torch.float32):
            loss = self.loss(inputs, targets)
        loss.backward()
        factor = rate_factor(self.step, progress, recipe)
        self.muon.step(recipe.matrix_rate * factor)
        for group in self.adam.param_groups:
            group["lr"] = recipe.vector_rate * factor
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        value = float(loss.detach())
        self.step += 1
        self.tokens += kept
        self.seconds += time.perf_counter() - started
        return value

    def state(self) -> dict[str, Any]:
        return {
            "shape": asdict(self.shape),
            "network": self.network.state_dict(),
            "muon": self.muon.momenta,
            "adam": self.adam.state_dict(),
            "mixer": self.packer.mixer.state(),
            "pool": self.packer.pool,
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "log": self.log,
        }

    def load(self, state: dict[str, Any]) -> None:
        if state["shape"] != asdict(self.shape):
            raise ValueError(f"the checkpoint has another shape: {state['shape']}; train into a new folder")
        self.network.load_state_dict(state["network"])
        for mine, saved in zip(self.muon.momenta, state["muon"], strict=True):
            mine.copy_(saved)
        self.adam.load_state_dict(state["adam"])
        self.packer.mixer.load(state["mixer"])
        self.packer.pool = [list(ids) for ids in state["pool"]]
        self.step, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]
        self.log = list(state["log"])

    def save(self, path: Path) -> None:
        """Atomic: a kill while writing leaves the former checkpoint."""
        with draft_file(path) as draft:
            torch.save(self.state(), draft)


def export(network: ReferenceModel, tokenizer: Tokenizer, folder: Path) -> None:
    """Write a transformers checkpoint in bfloat16, each file by atomic rename, after checking the logits.

    Raises ValueError if transformers' Llama, loaded from the files, disagrees with this file's forward pass.
    """
    with drafts_into(folder) as draft:
        _write_checked(network, tokenizer, draft)
        for path in draft.iterdir():
            path.chmod(0o644)  # safetensors writes 0600


def write_beside(network: ReferenceModel, tokenizer: Tokenizer, draft: Path) -> None:
    """All of a transformers checkpoint but its weights: configuration, generation rules, tokenizer."""
    from transformers import GenerationConfig, LlamaConfig

    shape = network.shape
    end = tokenizer.token_to_id(END)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        head_dim=shape.head_size,
        max_position_embeddings=shape.context,
        rms_norm_eps=shape.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        tie_word_embeddings=True,
        attention_bias=False,
        mlp_bias=False,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )
    config.save_pretrained(draft)
    GenerationConfig(bos_token_id=end, eos_token_id=end, pad_token_id=end, do_sample=False).save_pretrained(draft)
    save_tokenizer(tokenizer, draft, context=shape.context)


def _write_checked(network: ReferenceModel, tokenizer: Tokenizer, draft: Path) -> None:
    from safetensors.torch import save_file
    from transformers import LlamaForCausalLM

    shape = network.shape
    write_beside(network, tokenizer, draft)
    rounded = {k: v.detach().to("cpu", torch.bfloat16).contiguous() for k, v in network.state_dict().items()}
    save_file(rounded, draft / "model.safetensors", metadata={"format": "pt"})

    mine = ReferenceModel(shape)
    mine.load_state_dict({k: v.float() for k, v in rounded.items()})
    theirs = LlamaForCausalLM.from_pretrained(draft, dtype=torch.float32)
    probe = torch.randint(0, shape.vocabulary, (2, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        gap = float((mine.logits(probe) - theirs(probe).logits).abs().max())
    if not gap < 1e-3:
        raise ValueError(f"transformers' logits differ by {gap}: the export is wrong, nothing was replaced")


def tokenizer_of(out: Path, world: World) -> Tokenizer:
    """The tokenizer of this training folder: at first the committed one, or a new one where there is none."""
    path = out / "tokenizer.json"
    committed = MODEL_DIR / "tokenizer.json"
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        if committed.exists():
            shutil.copyfile(committed, path)
            return Tokenizer.from_file(str(path))
        train_tokenizer(world).save(str(path))
    return Tokenizer.from_file(str(path))


def train(recipe: Recipe, out: Path, *, resume: bool, export_to: Path | None, shape: Shape | None = None) -> Run:
    """Train until the recipe's end, with a checkpoint every few minutes and a JSON line of log every 20 steps."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    world = World()
    tokenizer = tokenizer_of(out, world)
    run = Run(recipe, shape or Shape(), world, tokenizer, device)
    latest = out / "checkpoint.pt"
    if resume and latest.exists():
        run.load(torch.load(latest, map_location=device, weights_only=True))
    elif latest.exists():
        raise FileExistsError(f"{latest} exists: add --resume to go on with it, or train into a new folder")
    stop: list[int] = []  # SIGTERM ends the run after its current step, with a checkpoint
    signal.signal(signal.SIGTERM, lambda number, frame: stop.append(number))
    saved, losses = time.monotonic(), list[float]()
    while run.progress < 1.0 and not stop:
        lesson, _ = lesson_at(run.progress)
        losses.append(run.train_step())
        if lesson_at(run.progress)[0] is not lesson:
            run.save(out / f"lesson-{LESSONS.index(lesson) + 1}.pt")  # from here the rest can be tried in another way
        if run.step % 20 == 0:
            line = {
                "step": run.step,
                "tokens": run.tokens,
                "seconds": round(run.seconds, 1),
                "progress": round(run.progress, 4),
                "loss": round(sum(losses) / len(losses), 4),
            }
            run.log.append(line)
            losses.clear()
            print(json.dumps(line), flush=True)
        if time.monotonic() - saved > 60 * recipe.save_minutes:
            run.save(latest)
            saved = time.monotonic()
    run.save(latest)
    if export_to is not None and not stop:
        export(run.network, tokenizer, export_to)
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the reference model.")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints, tokenizer and model/")
    parser.add_argument("--steps", type=int, default=STEPS, help="training steps (default: %(default)s)")
    parser.add_argument("--minutes", type=float, help="end by the clock instead; drives the schedule")
    parser.add_argument("--resume", action="store_true", help="go on from DIR/checkpoint.pt")
    parser.add_argument("--ternary", action="store_true", help="train the sibling whose linear layers are -1, 0 and 1")
    parser.add_argument("--export-only", action="store_true", help="write the latest checkpoint to DIR/model")
    arguments = parser.parse_args()
    out: Path = arguments.out
    if arguments.ternary and arguments.export_only:
        parser.error("a ternary checkpoint is packed: python -m tools.pack_ternary DIR")
    if arguments.export_only:
        state = torch.load(out / "checkpoint.pt", map_location="cpu", weights_only=True)
        network = ReferenceModel(Shape(**state["shape"]))
        network.load_state_dict(state["network"])
        export(network, tokenizer_of(out, World()), out / "model")
        print(f"exported step {state['step']}, {state['tokens']} tokens")
        return
    by_clock = arguments.minutes is not None
    recipe = Recipe(minutes=arguments.minutes, steps=None if by_clock else arguments.steps)
    shape = Shape(ternary=arguments.ternary)
    train(recipe, out, resume=arguments.resume, export_to=None if shape.ternary else out / "model", shape=shape)


if __name__ == "__main__":
    main()
