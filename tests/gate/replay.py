"""Nights drawn from real stored runs, for the audit of the gate.

Each drawn night has the same resample of items and windows for all cells and all runs of one draw, so that cells depend on each
other as they really do; latencies and peaks are those of one real run at random, the baseline's with them.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np

from harness import stats, store
from harness.frontier import Floats
from harness.gate import judge
from harness.gate.join import sides
from harness.gate.policy import Policy
from harness.gate.types import GateReport, History, Past
from harness.report.compare_items import items_of
from harness.report.compare_tokens import table_of
from harness.series import machine_identity
from harness.spec import Answer, Measurement, Record
from harness.stats import Interval
from harness.store import Run


class Replay:
    """Nights drawn from real runs of one suite, their latencies and peaks from `timed`, runs of one machine that ask the same
    questions of the same cells; by default from the runs like the first. Raw samples of a drawn night live in memory, under names
    of their content."""

    def __init__(self, runs: Sequence[Run], seed: int, *, timed: Sequence[Run] = ()) -> None:
        self.runs = runs
        clocks = timed or runs
        here = machine_identity(clocks[0].header.context)  # latencies of other numbers of threads are not compared
        self.clocks = [run for run in clocks if machine_identity(run.header.context) == here]
        self.rng = np.random.default_rng(seed)
        self._blobs: dict[str, bytes] = {}
        self._read = {(run.header.run, n): run.blob(n) for run in runs for r in run.records for n in _blobs(r)}

    def night(self, run: Run, draw: int, *, change: Callable[[Record, Answer], Answer] | None = None, place: int = 0) -> Run:
        """A run with its items and windows resampled by `draw`, the same for all cells and all runs, and with the latencies and
        peaks of a run at random."""
        whose = self.clocks[int(self.rng.integers(len(self.clocks)))]
        beside = {(repr(r.cell), repr(r.question)): r for r in whose.records}
        records = []
        for record in run.records:
            if record.answer is None:
                records.append(record)
                continue
            source = record
            if record.question.probe in ("latency", "memory"):
                source = beside.get((repr(record.cell), repr(record.question)), record)
                source = record if source.answer is None else source
            assert source.answer is not None
            answer = source.answer
            answer = replace(answer, measurements=tuple(self._drawn(run, record, m, draw) for m in answer.measurements))
            records.append(replace(record, answer=answer if change is None else change(record, answer)))
        header = replace(run.header, run=f"night-{draw}-{place}", context=self.runs[0].header.context)
        return replace(run, records=tuple(records), header=header)

    def _drawn(self, run: Run, record: Record, m: Measurement, draw: int) -> Measurement:
        if m.blob is None or m.metric not in ("accuracy", "perplexity", "kl_mean"):
            return m
        data = self._read[run.header.run, m.blob]
        rng = np.random.default_rng([draw, *record.question.subject.encode()])
        if m.metric == "accuracy":
            items = items_of(data)
            order = rng.integers(len(items.ids), size=len(items.ids))
            rows = [{"id": str(i), "correct": float(items.correct[place])} for i, place in enumerate(order)]
            return replace(
                m, blob=self.keep(json.dumps({"items": rows}).encode(), "json"), value=float(items.correct[order].mean())
            )
        table = table_of(data)
        table = table[rng.integers(len(table), size=len(table))]
        return replace(m, blob=self.keep(npy(table), "npy"))

    def keep(self, data: bytes, extension: str) -> str:
        """Keeps raw samples in memory, under the name that the store would give them."""
        name = f"{hashlib.sha256(data).hexdigest()}.{extension}"
        self._blobs[name] = data
        return name

    def gate(
        self, before: Run, after: Run, *, keep: bool = False, past: History | None = None, policy: Policy | None = None
    ) -> GateReport:
        """What the gate says, without intervals, on which no verdict of the default policy rests: its margins are zero. They are
        most of a gate's time, and a thousand nights want none of them."""
        with (
            mock.patch.object(store, "read_blob", self._blob),
            mock.patch.object(stats, "paired_difference", lambda old, new, *_: _point(new - old)),
            mock.patch.object(stats, "mean_difference_over_tasks", _mean_over_tasks),
            mock.patch.object(stats, "block_bootstrap_mean", _point),
        ):
            report = judge.gate(before, after, history=past, policy=policy)
        if not keep:
            self.forget()
        return report

    def _blob(self, folder: Path, name: str) -> bytes:
        """Raw samples that were drawn, else those of the real run: texts and tokens, which are not."""
        drawn = self._blobs.get(name)
        return (folder / "blobs" / name[:2] / name).read_bytes() if drawn is None else drawn

    def forget(self) -> None:
        """Drops the raw samples of the nights drawn so far."""
        self._blobs.clear()

    def timed(self, run: Run, name: str, *, change: Callable[[Record, Answer], Answer] | None = None) -> Run:
        """The latencies and peaks of a real run at random, under the plan of `run`, and nothing else."""
        drawn = self.night(
            replace(run, records=tuple(r for r in run.records if r.question.probe in ("latency", "memory"))), 0, change=change
        )
        return replace(drawn, header=replace(drawn.header, run=name))

    def mixed(self, run: Run, good: str, bad: str, *, share: float, draw: int, rng: np.random.Generator) -> Run:
        """A night of `draw` in which a share of the items and windows of the cell `good` are answered as by the cell `bad`."""
        worse = {asked(r): r for r in run.records if r.cell.name == bad}
        night = self.night(run, draw, place=1)
        faulty = self.night(
            replace(
                run,
                records=tuple(
                    replace(worse[asked(r)], cell=r.cell) if r.cell.name == good and asked(r) in worse else r for r in run.records
                ),
            ),
            draw,
            place=1,
        )
        records = [
            self._mix(a, b, share, rng) if a.cell.name == good else a for a, b in zip(night.records, faulty.records, strict=True)
        ]
        return replace(night, records=tuple(records))

    def _mix(self, good: Record, bad: Record, share: float, rng: np.random.Generator) -> Record:
        if good.answer is None or bad.answer is None:
            return good
        other = {m.metric: m for m in bad.answer.measurements}
        made = []
        for m in good.answer.measurements:
            blob = other[m.metric].blob if m.metric in other else None
            if m.metric not in ("accuracy", "perplexity", "kl_mean") or m.blob is None or blob is None:
                made.append(m)
            elif m.metric == "accuracy":
                first, second = items_of(self._blobs[m.blob]), items_of(self._blobs[blob])
                correct = np.where(rng.uniform(size=len(first.ids)) < share, second.correct, first.correct)
                rows = [{"id": name, "correct": float(c)} for name, c in zip(first.ids, correct, strict=True)]
                made.append(replace(m, blob=self.keep(json.dumps({"items": rows}).encode(), "json"), value=float(correct.mean())))
            else:
                tables = table_of(self._blobs[m.blob]), table_of(self._blobs[blob])
                made.append(
                    replace(
                        m, blob=self.keep(npy(np.where(rng.uniform(size=tables[0].shape) < share, tables[1], tables[0])), "npy")
                    )
                )
        return replace(good, answer=replace(good.answer, measurements=tuple(made)))


def _point(changes: Floats) -> Interval:
    return Interval(value=float(np.nanmean(changes)), low=None, high=None, n=changes.size)


def _mean_over_tasks(rows: Sequence[stats.Task]) -> Interval:
    value = float(np.mean([np.mean(np.asarray(row.cell) - np.asarray(row.base)) for row in rows]))
    return Interval(value=value, low=None, high=None, n=0)


def asked(record: Record) -> tuple[str, str]:
    """What was asked of a cell: the probe and its subject."""
    return record.question.probe, record.question.subject


def npy(table: Floats) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, table.astype(np.float32), allow_pickle=False)
    return buffer.getvalue()


def _blobs(record: Record) -> set[str]:
    return set() if record.answer is None else {m.blob for m in record.answer.measurements if m.blob is not None}


def history(runs: Sequence[Run]) -> History:
    """Past nights of the latencies and peaks of runs, oldest first."""
    found: dict[tuple[str, str, str, str], list[Past]] = {}
    for run in runs:
        here = machine_identity(run.header.context)
        every = sides(run)
        for identity, side in every.cells.items():
            base = every.baseline_of(side)
            for name, answered in side.asked.items():
                for m in answered.measurements:
                    beside = None if base is None or name not in base.asked else base.asked[name].sample(m.metric, m.definition)
                    past = Past(
                        started_at=run.header.started_at,
                        run=run.header.run,
                        value=m.value,
                        baseline=None if beside is None else beside.value,
                        machine=here,
                    )
                    found.setdefault((identity, m.metric, answered.question.subject, m.definition), []).append(past)
    return {key: tuple(nights) for key, nights in found.items()}
