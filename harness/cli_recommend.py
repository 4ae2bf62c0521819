"""The verb `recommend`: which cell to deploy, under limits. Prints, like cli.py, which it is a part of."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from harness.errors import EXIT_OK, BadInput, UnknownName

if TYPE_CHECKING:
    from harness.decide import Candidate, Decision, Limits, Recommendation

CHANGES_NUMBERS = False
"""Stored measurements do not depend on this file: it is no part of the source digest (run/source.py)."""

EXIT_NOTHING = 1
"""Nothing qualifies."""

EPILOG = (
    "Examples: quant-harness recommend results/quick --max-loss 1pp · "
    "quant-harness recommend results/quick --max-memory 6GiB --context 8192 --batch 1 --max-loss recovery:1% --prefer speed"
)
out = Console()


class Format(StrEnum):
    """Formats of `recommend`."""

    table = "table"
    json = "json"


class Prefer(StrEnum):
    """What decides between cells that qualify."""

    size = "size"
    speed = "speed"
    quality = "quality"


def recommend(
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help="A run file (.jsonl), or a suite's results folder.")],
    model: Annotated[list[str] | None, typer.Option("--model", help="Only this model; may be given again.")] = None,
    method: Annotated[list[str] | None, typer.Option("--method", help="Only this method; may be given again.")] = None,
    bits: Annotated[list[float] | None, typer.Option("--bits", help="Only these bits; may be given again.")] = None,
    max_memory: Annotated[str | None, typer.Option("--max-memory", help="Peak memory at --context x --batch: 6GiB.")] = None,
    context: Annotated[int | None, typer.Option("--context", min=1, help="Tokens in the cache; default: as measured.")] = None,
    batch: Annotated[int | None, typer.Option("--batch", min=1, help="Sequences at once; default: as measured.")] = None,
    max_size: Annotated[str | None, typer.Option("--max-size", help="Bytes on disk: 4GB.")] = None,
    max_tpot: Annotated[str | None, typer.Option("--max-tpot", help="Time per output token: 40ms.")] = None,
    max_ttft: Annotated[str | None, typer.Option("--max-ttft", help="Time to the first token: 1.5s.")] = None,
    max_loss: Annotated[
        str, typer.Option("--max-loss", help="1pp (points of mean accuracy), recovery:1% or kl:0.02 (nats).")
    ] = "1pp",
    confidence: Annotated[float, typer.Option("--confidence", help="With which the loss is shown: 0.8, 0.9, 0.95, 0.99.")] = 0.95,
    prefer: Annotated[Prefer, typer.Option("--prefer", help="What decides between cells that qualify.")] = Prefer.size,
    format: Annotated[Format, typer.Option("--format", help="How to print.")] = Format.table,
) -> None:
    """Say which cell to deploy, what it costs and loses, why each other cell fails, and what would change the answer.

    Exits with 0 where something qualifies, 1 where nothing does, 2 for bad input. docs/recommend.md has the rules."""
    from harness import store
    from harness.decide import Limits, decide, quantities
    from harness.report.candidates import candidates
    from harness.report.view import view

    memory, memory_binary = _bytes(max_memory, "--max-memory")
    size, size_binary = _bytes(max_size, "--max-size")
    loss, allowed = quantities.parse_loss(max_loss, "--max-loss")
    limits = Limits(
        max_memory=memory,
        context=context,
        batch=batch,
        max_size=size,
        max_tpot=None if max_tpot is None else quantities.parse_seconds(max_tpot, "--max-tpot"),
        max_ttft=None if max_ttft is None else quantities.parse_seconds(max_ttft, "--max-ttft"),
        loss=loss,
        max_loss=allowed,
        confidence=quantities.parse_confidence(confidence, "--confidence"),
        prefer=prefer.value,
        models=tuple(model) if model else None,
        methods=tuple(method) if method else None,
        bits=tuple(bits) if bits else None,
        binary=memory_binary or size_binary,
    )
    cells = candidates(view(store.read(results)))
    _check(cells, limits)
    decision = decide(cells, limits)
    (_print_json if format is Format.json else _print_table)(cells, limits, decision)
    raise typer.Exit(EXIT_OK if any(r.pick is not None for r in decision.recommendations) else EXIT_NOTHING)


def _bytes(text: str | None, option: str) -> tuple[float | None, bool]:
    from harness.decide import quantities

    return (None, False) if text is None else quantities.parse_bytes(text, option)


def _check(cells: Sequence[Candidate], limits: Limits) -> None:
    """Names that no cell has are mistakes, not limits that nothing keeps."""
    if not cells:
        raise BadInput("these results hold no planned cell to choose from; run the suite first")
    for name in limits.models or ():
        if name not in {c.model for c in cells}:
            raise UnknownName("model", name, {c.model for c in cells}, where="--model")
    for name in limits.methods or ():
        if name not in {c.method for c in cells}:
            raise UnknownName("method", name, {c.method for c in cells}, where="--method")
    there = sorted({c.bits for c in cells})
    for wanted in limits.bits or ():
        if wanted not in there:
            raise BadInput(f"--bits {wanted:g}: no cell has so many; there are {', '.join(f'{b:g}' for b in there)}")


def _print_json(cells: Sequence[Candidate], limits: Limits, decision: Decision) -> None:
    """The decision as the page's script has it, with its sentences and the labels of its cells."""
    from harness.decide import say
    from harness.spec import to_json

    said = [
        {
            **to_json(answer),
            "labels": {c.id: c.label for c in cells if c.model == answer.model},
            "sentences": to_json(say(cells, limits, answer)),
        }
        for answer in decision.recommendations
    ]
    text = json.dumps({"limits": to_json(limits), "recommendations": said}, indent=2, ensure_ascii=False)
    sys.stdout.write(text + "\n")


def _print_table(cells: Sequence[Candidate], limits: Limits, decision: Decision) -> None:
    labels = {c.id: c.label for c in cells}
    for place, answer in enumerate(decision.recommendations):
        if len(decision.recommendations) > 1:
            out.print(f"{'' if place == 0 else chr(10)}{answer.model}", style="bold", markup=False, highlight=False)
        for line in _lines(cells, limits, answer, labels):
            out.print(line, markup=False, highlight=False, soft_wrap=True)


def _lines(cells: Sequence[Candidate], limits: Limits, answer: Recommendation, labels: dict[str, str]) -> list[str]:
    """One thing a line; the cells that do not qualify last, each with its reason."""
    from harness.decide import say

    said = say(cells, limits, answer)
    lines = [said.pick, *(line for line in (said.runner_up, said.alike) if line), *said.changes, *said.settle]
    others = [i for i in answer.order if i not in (answer.pick, answer.runner_up)]
    if others:
        lines.append(f"Qualify too: {', '.join(labels[i] for i in others)}.")
    if said.fails:
        width = max(len(labels[i]) for i in said.fails)
        lines += ["", "Why the others do not qualify:", *(f"  {labels[i]:<{width}}  {why}" for i, why in said.fails.items())]
    return lines
