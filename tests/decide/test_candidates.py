"""From a stored run to the cells that a decision chooses between."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from harness import store
from harness.decide import Candidate, memory_at
from harness.metrics.memory import KV_CACHE
from harness.report.candidates import candidates
from harness.report.view import view
from harness.spec import Measurement, Record
from tests.report import synthetic

SHAPE = {"layers": 4, "kv_heads": 2, "head_size": 32, "windowed": 0, "window": None}
CACHE = 2 * 4 * 2 * 32 * 2 * 575
"""Bytes of keys and values of 575 tokens in 16 bits."""


def with_a_cache(record: Record) -> Record:
    """A memory answer that says its cache and its model's shape."""
    if record.question.probe != "memory" or record.answer is None:
        return record
    cache = Measurement(metric=KV_CACHE.name, value=float(CACHE), definition=KV_CACHE.definition, unit="B", n=1)
    answer = dataclasses.replace(
        record.answer,
        measurements=(cache, *(m for m in record.answer.measurements if m.metric != KV_CACHE.name)),
        facts={**record.answer.facts, "context_tokens": 575, "kv_shape": SHAPE},
    )
    return dataclasses.replace(record, answer=answer)


def by_label(folder: Path, **how: object) -> dict[str, Candidate]:
    path = synthetic.write(folder, small=True, edit=with_a_cache, **how)  # type: ignore[arg-type]
    return {c.label: c for c in candidates(view(store.read(path)))}


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Candidate]:
    return by_label(tmp_path_factory.mktemp("candidates"))


def test_costs_and_losses_are_those_of_the_view(cells: dict[str, Candidate]) -> None:
    cell = cells["gptq 4-bit g64"]
    assert cell.size.value is not None
    assert [(s.prompt, s.new, s.batch) for s in cell.speeds] == [(128, 64, 1), (512, 64, 1)]
    for kind, unit, n in (("pp", "items", 240), ("recovery", "items", 240), ("kl", "windows", 8)):
        loss = cell.losses[kind]
        assert (loss.unit, loss.n) == (unit, n)
        assert loss.value is not None
        known = [limit for limit in loss.limits if limit is not None]
        assert [loss.value, *known] == sorted([loss.value, *known])
        assert len(known) == 4
    assert cells["bf16"].losses["pp"].limits == (0.0, 0.0, 0.0, 0.0)


def test_what_failed_or_was_not_run_has_its_reason(cells: dict[str, Candidate]) -> None:
    assert cells["awq 2-bit g64"].size.reason.startswith("oom: the kernel killed")
    assert cells["hqq 3-bit g64"].losses["pp"].reason == "reference_sums: it has no answer to this task"
    assert cells["hqq 2-bit g64"].memory.reason == "planned, no outcome stored yet"
    assert cells["inc 4-bit g64"].simulated
    assert cells["inc 4-bit g64"].memory.measured is None
    assert cells["inc 4-bit g64"].losses["pp"].value is not None


def test_memory_elsewhere_grows_by_the_cache_of_the_shape(cells: dict[str, Candidate]) -> None:
    cell = cells["gptq 4-bit g64"]
    assert [part.bytes_per_token for part in cell.memory.cache] == [CACHE / 575]
    near, far = memory_at(cell, 10_000, 1)[0], memory_at(cell, 20_000, 3)[0]
    assert near is not None
    assert far is not None
    assert far - near == pytest.approx(CACHE / 575 * (60_000 - 10_000))


def test_without_a_shape_memory_is_known_where_it_was_measured(tmp_path: Path) -> None:
    (cell, *_) = candidates(view(store.read(synthetic.write(tmp_path, small=True))))
    assert memory_at(cell, None, None)[0] == cell.memory.measured
    assert memory_at(cell, 8192, 1) == (None, True, "the run does not hold a shape of the model's cache")


def test_records_in_another_order_give_equal_candidates(cells: dict[str, Candidate], tmp_path: Path) -> None:
    assert by_label(tmp_path, shuffle=3) == cells


def test_cells_are_alike_both_ways(cells: dict[str, Candidate]) -> None:
    by_id = {c.id: c for c in cells.values()}
    for cell in cells.values():
        for kind, others in cell.alike.items():
            assert cell.id not in others
            assert all(cell.id in by_id[other].alike[kind] for other in others)
