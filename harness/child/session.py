"""What a probe sees inside a child: the loaded cell, its texts and stored baselines, and a place for raw samples."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.artifact import verified
from harness.child import bound, calibration, effect
from harness.child import job as jobs
from harness.child.events import Event, PhaseBegun
from harness.child.job import Job, stored_baseline_name
from harness.decode import decode
from harness.engines import ENGINES
from harness.engines.base import EngineFacts, Loaded, through_cache
from harness.errors import BadReload, HarnessError, Unsupported
from harness.files import write_atomically
from harness.kv import split_of
from harness.measure import memory_phases
from harness.methods import METHODS, reload
from harness.methods.base import LoadRequest
from harness.models import corpora, source
from harness.probes.blame import broken
from harness.spec import Cell, Json, Phase, Question

_BLOB_EXTENSIONS = {"npy", "json", "npz", "txt"}


class WorkerSession:
    """`probes.base.Session` inside a child: loads on first use, keeps blobs in the job's folder, measures phases."""

    def __init__(self, job: Job, folder: Path, tell: Callable[[Event], None]) -> None:
        self.cell = job.cell
        self.is_baseline = job.is_baseline
        self.artifact_dir = job.artifact_dir
        self.model_dir = job.model_dir
        self.device = job.device
        self.seed = job.seed
        self.cache = job.cache
        self.memo: dict[str, Any] = {}
        self._job = job
        self._outbox = jobs.outbox(folder)
        self._tell = tell
        self._loaded: Loaded | None = None
        self._facts: EngineFacts | None = None
        self._wrong: str | None = None
        self._held = False
        self._phases: list[Phase] = []

    @property
    def loaded(self) -> Loaded:
        if self._loaded is None:
            self._loaded = self._load(self.cell, self.artifact_dir)
        return self._loaded

    @property
    def has_loaded(self) -> bool:
        return self._loaded is not None

    @property
    def held(self) -> bool:
        """Whether `verify` has found everything right, so that it costs nothing."""
        return self._wrong == "" and (self._held or self._job.bound is None)

    def verify(self) -> None:
        """The reload check, the proof that the type of keys and values has an effect, and the bound on the answers, once per
        artifact and way of running: BadReload when it loads but answers otherwise than its weights say, NoEffect, BadAnswers when
        it is too far from the baseline. Called in the child that asks the quality probes, or in one of its own; never in one that
        measures memory or latency."""
        if self._wrong is None:
            passed = verified(self.artifact_dir, self.cell.running)
            if not passed.is_file():
                wrong = reload.check(self.loaded.model, self.artifact_dir) or ""
                if not wrong:
                    effect.prove(self.cell, self.loaded)
                self._wrong = wrong
                if not self._wrong:
                    write_atomically(passed, '{"ok": true}', lasting=True)
        if self._wrong:
            raise BadReload(self._wrong)
        self._hold()

    def _hold(self) -> None:
        """Holds the cell's answers against the baseline's, or has the baseline leave its own."""
        folder = self._job.bound
        if folder is None or self._held:
            return
        if self.is_baseline:
            self._held = True
            with contextlib.suppress(HarnessError):  # what cannot be had of it, no cell is held against
                self.keep_bound()
            return
        if self.answers is None:
            answers = bound.hold(self.cell, self.loaded, folder, fault=lambda: broken(self))
            if answers is not None:
                path = bound.held_file(self.artifact_dir, self.cell, folder)
                write_atomically(path, json.dumps(asdict(answers)), lasting=True)
        self._held = True  # not where it was refused: the next question is refused as well

    def keep_bound(self) -> None:
        """Has the baseline leave its answers to the fixed tokens, with the noise floor and plain roundings, unless they
        are there."""
        folder = self._job.bound
        assert folder is not None
        assert self.is_baseline
        if bound.complete(folder, self._job.roundings):
            return

        def anew() -> Iterator[Loaded]:
            while True:
                yield self._load(self.cell, self.artifact_dir)

        bound.keep(folder, self._job.roundings, self.loaded, anew(), model_dir=self.model_dir, cache=self.cache)

    @property
    def answers(self) -> bound.Answers | None:
        """How the cell's answers were held against the baseline's; None where they were not."""
        if self._job.bound is None or self.is_baseline:
            return None
        try:
            text = bound.held_file(self.artifact_dir, self.cell, self._job.bound).read_text(encoding="utf-8")
        except OSError:
            return None
        return decode(bound.Answers, json.loads(text))

    @property
    def facts(self) -> EngineFacts | None:
        """What the engine holds, once loaded: asked only when somebody wants to know, so that a probe which weighs the load makes
        the first forward pass itself."""
        if self._facts is None and self._loaded is not None:
            self._facts = self._loaded.facts()
        return self._facts

    @property
    def simulated(self) -> bool:
        """Whether the engine holds the weights dequantized; False until it has loaded them."""
        facts = self.facts
        return facts is not None and facts.simulated

    @property
    def model_seconds(self) -> float:
        """Seconds that the loaded model has spent in scoring and generating (0 for engines that do not count them)."""
        return float(getattr(self._loaded, "model_seconds", 0.0))

    def load_baseline(self) -> Loaded | None:
        from harness.measure.machine import available_memory_bytes

        if self._job.baseline is None or self.is_baseline:
            return None
        cell, folder = self._job.baseline.cell, self._job.baseline.artifact_dir
        size = sum(p.stat().st_size for p in folder.iterdir() if p.is_file())
        room = available_memory_bytes()
        if room is not None and size * 2 > room:
            return None
        return self._load(cell, folder)

    def _load(self, cell: Cell, artifact_dir: Path) -> Loaded:
        request = LoadRequest(
            artifact_dir=artifact_dir, model_dir=self.model_dir, origin=cell.origin, running=cell.running, device=self.device
        )
        return ENGINES[cell.running.engine].load(METHODS[cell.method], request)

    def windows(self, question: Question) -> list[list[int]]:
        key = f"windows {question.subject} {question.options.get('window')} {question.options.get('tokens')}"
        if key not in self.memo:
            ids = corpora.token_ids(self.loaded.tokenizer, self.corpus(question).text, self.cache / "tokens")
            view = source.known(self.model_dir)
            if view is not None:
                source.check_ids(ids, view.rows, self.loaded.tokenizer, f"corpus {question.subject!r}")
            self.memo[key] = corpora.windows(
                ids, int(question.options["window"]), question.options.get("tokens"), question.subject
            )
        windows: list[list[int]] = self.memo[key]
        return windows

    def corpus(self, question: Question) -> corpora.Text:
        key = f"text {question.subject}"
        if key not in self.memo:
            self.memo[key] = corpora.read(self._job.texts[question.subject])
        known: corpora.Text = self.memo[key]
        return known

    @property
    def calibrated(self) -> bool:
        """Whether the cell's weights were calibrated on a text."""
        return self._job.calibration is not None

    def calibration_overlap(self, question: Question) -> float | None:
        """How much of what the cell was calibrated on the question's corpus holds too, see `calibration.overlap_with`."""
        key = f"overlap {question.subject}"
        if key not in self.memo:
            self.memo[key] = calibration.overlap_with(self._job, self.corpus(question).text)
        known: float | None = self.memo[key]
        return known

    def baseline_items(self, question: Question) -> Json:
        given = self._job.baseline_items[question.subject]
        return {**json.loads(given.path.read_bytes()), "definition": given.definition}

    def task_folder(self, question: Question) -> Path | None:
        return self._job.task_folders.get(question.subject)

    def stored_baseline(self, question: Question) -> Path:
        """The baseline's stored answers; the baseline itself writes them when they are missing."""
        folder = self._job.stored_baselines[stored_baseline_name(question)]
        if folder.is_dir():
            return folder
        if not self.is_baseline:
            raise Unsupported(f"the baseline has no stored answers on {question.subject!r}: it failed or was not measured")
        split = split_of(str(question.options.get("definition", "")))
        with self.phase("baseline"):
            if split is None:
                self.loaded.store_baseline(self.windows(question), folder)
            else:
                through_cache(self.loaded).store_cached(self.windows(question), split, folder)
        return folder

    def blob(self, name: str, data: bytes, extension: str) -> str:
        if extension not in _BLOB_EXTENSIONS:
            raise ValueError(f"{extension!r} is no extension of raw samples: {sorted(_BLOB_EXTENSIONS)}")
        path = self._outbox / f"{len(os.listdir(self._outbox)):04d}-{name}.{extension}"
        path.write_bytes(data)
        return path.name

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._tell(PhaseBegun(name=name))
        with memory_phases.measure(name) as meter:
            yield
        if meter.phase is not None:
            self._phases.append(meter.phase)

    def phases(self) -> tuple[Phase, ...]:
        return tuple(self._phases)

    def take_phases(self) -> tuple[Phase, ...]:
        taken, self._phases = tuple(self._phases), []
        return taken
