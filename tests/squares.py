"""Cells for tests that need one and do not plan a suite."""

from __future__ import annotations

from harness.spec import Cell, Model, Quantized, Running, Scheme


def square(scheme: Scheme, *, model: Model | None = None, running: Running | None = None, label: str = "") -> Cell:
    """A cell that is quantized with `scheme`; by default of a model `m`, run by transformers."""
    return Cell(
        model=model or Model(name="m"),
        origin=Quantized(scheme=scheme),
        running=running or Running(engine="transformers"),
        label=label,
    )
