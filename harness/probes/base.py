"""What a probe is: code that measures one thing of one cell.

A probe file turns what a suite asks into questions, and answers one question in a child process. Its metrics are rows in
`harness/metrics/`. Its top level imports the standard library and `harness` only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from harness.engines.base import Loaded
from harness.models.corpora import Text
from harness.probes.requests import ProbeRequests
from harness.spec import Answer, Cell, Json, Measurement, Metric, OriginKind, Phase, Question

if TYPE_CHECKING:
    from harness.stats import Interval

Isolation = Literal["shared", "memory", "latency"]
"""`shared`: answered in the cell's quality child together with other probes. `memory`: first in a fresh child, alone on the
machine. `latency`: alone on the machine, in a child that does nothing else or has answered a `memory` question before."""


class Session(Protocol):
    """What a probe sees inside the worker. `loaded` loads the artifact on first use and keeps it."""

    cell: Cell
    is_baseline: bool
    artifact_dir: Path
    model_dir: Path
    device: str
    seed: int
    cache: Path  # private and writable, kept between runs
    memo: dict[str, Any]  # one pass answers several questions (e.g. perplexity and divergence on one corpus)

    @property
    def loaded(self) -> Loaded: ...

    def load_baseline(self) -> Loaded | None:
        """Loads the baseline's artifact beside the cell's (latency interleaving); None if it would not fit twice."""

    def stored_baseline(self, question: Question) -> Path:
        """Folder with the baseline's stored answers for this corpus; raises Unsupported if there is none."""

    def windows(self, question: Question) -> list[list[int]]:
        """The corpus of the question as non-overlapping windows of token ids: tokenized once as the tokenizer does, cut into
        floor(N / window), at most `tokens` ids in all. Raises BadInput if the corpus is shorter than one window."""

    def corpus(self, question: Question) -> Text:
        """The text of the question's corpus, limited as `windows` is not: all of it."""

    def baseline_items(self, question: Question) -> Json:
        """The baseline's answers to all items of a question that is asked until a verdict: its side-car (`items`, `metric`)
        with the `definition` that it was measured under."""

    def task_folder(self, question: Question) -> Path | None:
        """The folder with the question's task YAML; None for a task that comes with lm-eval."""

    def blob(self, name: str, data: bytes, extension: str) -> str:
        """Keeps raw samples beside the answer; returns the name to put into `Measurement.blob`."""

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Context manager: everything inside is that phase (peaks reset on entry, counted by the kernel on exit)."""

    def phases(self) -> tuple[Phase, ...]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A row of PROBES. `title` heads its metrics in the report. `version` is bumped, with a dated line in the file, whenever a
    definition changes."""

    name: str
    title: str
    version: str
    metrics: tuple[Metric, ...]
    isolation: Isolation
    questions: Callable[[ProbeRequests], list[Question]]
    measure: Callable[[Session, Question], Answer]
    needs_stored_baseline: bool = False
    needs_model: bool = True
    origins: tuple[OriginKind, ...] = ("quantized", "given", "served")  # the cells that it is asked of
    needs_weights: bool = False  # says something of trained weights only: not asked of a shape filled with random ones
    of_mixtures: bool = False  # asked of cells alone that mix widths by layer
    engines: tuple[str, ...] = ()  # asked only of cells that run in these; of all where none is named
    own_server: bool = False  # of a cell that is no server, asks one that the cell's engine starts; the model is not loaded here
    preload: tuple[str, ...] = ()  # modules worth importing once before forking (must start no threads)
    # (questions, each with its task's folder; cache): work common to all cells, done before forking (harness/child/branch.py)
    prepare: Callable[[Sequence[tuple[Question, Path | None]], Path], None] | None = None

    @property
    def simulated(self) -> bool:
        """Whether it is asked of a cell whose weights are held dequantized: it has a metric that such a cell may show."""
        return any(metric.when_simulated for metric in self.metrics)


def of_interval(metric: Metric, interval: Interval, definition: str, *, blob: str | None = None) -> Measurement:
    """A measurement of an interval, in the metric's unit."""
    return Measurement(
        metric=metric.name,
        value=interval.value,
        low=interval.low,
        high=interval.high,
        n=interval.n,
        unit=metric.unit,
        definition=definition,
        blob=blob,
    )
