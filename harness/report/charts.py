"""The data that the page carries once, as plain JSON: numbers in display units and finished texts, so that the page's script
formats nothing and decides nothing about the statistics."""

from __future__ import annotations

from collections.abc import Sequence

from harness.report.cells import OK, CellView, Column
from harness.report.numbers import Display
from harness.report.section import column_display, finite, hue, shape, whole
from harness.report.standing import Noise, cost_columns, quality_columns, standings
from harness.report.view import View
from harness.spec import Json, digest

LADDER = ("perplexity", "bits_per_byte", "kl_mean", "kl_p99", "same_top", "ln_ppl_ratio", "mean_accuracy")


def payload(view: View) -> Json:
    qualities, costs = quality_columns(view), cost_columns(view)
    ladders = ladder_columns(view)
    shown = {c.key: c for c in (*qualities, *costs, *ladders)}
    displays = {key: column_display(view, column) for key, column in shown.items()}
    numbers = {key: index for index, key in enumerate(shown)}
    return {
        "models": list(view.models),
        "columns": [_column(column, displays[key]) for key, column in shown.items()],
        "quality": [numbers[c.key] for c in qualities],
        "cost": [numbers[c.key] for c in costs],
        "ladder": [numbers[c.key] for c in ladders],
        "cells": [_cell(view, cell, list(shown.values()), displays) for cell in view.cells],
        "standing": _standings(view, costs, qualities, numbers),
    }


def ladder_columns(view: View) -> list[Column]:
    return sorted(view.of(*LADDER), key=lambda c: LADDER.index(c.metric.name))


def series(cell: CellView) -> str:
    """What makes one line of the ladder: a method with its options, whatever the bits."""
    options = {k: v for k, v in cell.cell.scheme.options.items() if k != "calibration"}
    return digest([cell.model, cell.cell.scheme.method, options])[:12]


def _column(column: Column, how: Display) -> Json:
    return {
        "key": column.key,
        "title": column.title,
        "name": column.metric.title,
        "subject": column.subject,
        "unit": "" if how.label == "p" else how.label,
        "better": column.metric.better,
        "log": column.metric.scale == "log",
        "definition": column.metric.definition,
    }


def _cell(view: View, cell: CellView, columns: Sequence[Column], displays: dict[str, Display]) -> Json:
    numbers, texts = [], []
    for column in columns:
        value, how = cell.values[column.key], displays[column.key]
        limits = [finite(value.low), finite(value.high)]
        scaled = [None if limit is None else limit * how.factor for limit in limits]
        numbers.append([value.value * how.factor, *scaled] if value.status == OK else None)
        texts.append(whole(column, value, how))
    return {
        "id": cell.id,
        "model": view.models.index(cell.model),
        "label": cell.label,
        "method": cell.cell.scheme.method,
        "bits": cell.cell.scheme.bits,
        "series": series(cell),
        "hue": hue(view, cell),
        "symbol": shape(cell.cell.scheme.bits)[0],
        "baseline": cell.baseline,
        "simulated": cell.simulated,
        "v": numbers,
        "t": texts,
    }


def _standings(view: View, costs: Sequence[Column], qualities: Sequence[Column], numbers: dict[str, int]) -> Json:
    """By `model,cost,quality`: per cell id [status, probability, ids of rivals, ids of ties]."""
    found: dict[str, Json] = {}
    noise = Noise(view)
    for index, model in enumerate(view.models):
        cells = [c for c in view.cells if c.model == model]
        for cost in costs:
            for quality in qualities:
                stands = standings(view, cells, cost, quality, noise)
                found[f"{index},{numbers[cost.key]},{numbers[quality.key]}"] = {
                    key: [s.status, round(s.probability, 3), list(s.rivals[:3]), list(s.ties[:3])] for key, s in stands.items()
                }
    return found
