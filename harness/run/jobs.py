"""Writes what children are told: a folder per job, and the file with the work that cells share."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness import envs
from harness.artifact import MANIFEST
from harness.child.bound import bounded
from harness.child.job import (
    Baseline,
    BaselineItems,
    CalibrationRows,
    Job,
    Preparation,
    Stage,
    stored_baseline_name,
    write_job,
    write_preparation,
)
from harness.probes import PROBES
from harness.run.identity import Inputs
from harness.spec import Cell, Question, digest
from harness.suite.plan import PlannedCell


class JobFolders:
    """Turns questions into jobs: names become the paths, digests and files that `inputs` knows. `home` holds the folders."""

    def __init__(self, inputs: Inputs, *, threads: int, home: Path) -> None:
        self._inputs = inputs
        self._threads = threads
        self._home = home

    def write(
        self,
        stage: Stage,
        planned: PlannedCell,
        artifact: Path,
        questions: Sequence[Question] = (),
        items: Mapping[str, BaselineItems] | None = None,
    ) -> Path:
        """Writes a job into a new folder and returns the folder. `items`: the baseline's answers by task, for questions that
        are asked until a verdict."""
        folder = self._home / f"{time.time_ns()}-{stage}"
        folder.mkdir(parents=True)
        inputs = self._inputs
        resolved = tuple(inputs.resolved(planned.cell, q) for q in questions)
        source = inputs.source(planned.cell) if stage == "quantize" else planned.cell.model.name
        job = Job(
            stage=stage,
            cell=planned.cell,
            is_baseline=planned.baseline,
            questions=resolved,
            model_dir=inputs.model_dirs[source] if stage == "source" else inputs.model_dir(source),
            artifact_dir=artifact,
            baseline=self._baseline(planned.cell),
            device=inputs.plan.device,
            seed=inputs.plan.suite.seed,
            threads=self._threads,
            cache=inputs.cache,
            texts=inputs.texts,
            task_folders={name: Path(folder) for name, folder in inputs.plan.task_folders.items()},
            stored_baselines={
                stored_baseline_name(q): inputs.stored_baseline(planned.cell, q) for q in resolved if "corpus_digest" in q.options
            },
            baseline_items=items or {},
            calibration=self._calibration(planned.cell),
            training=inputs.training(planned.cell),
            bound=inputs.bound(planned.cell) if bounded(planned.cell, inputs.baseline(planned.cell).cell) else None,
            roundings=inputs.roundings(planned.cell) if planned.baseline else (),
        )
        write_job(folder, job)
        return folder

    def write_preparation(self, todo: Sequence[tuple[PlannedCell, Sequence[Question]]]) -> Path | None:
        """A file with the questions that several cells are still asked and whose probes can prepare them; None without any."""
        prepared = [(planned.cell, q) for planned, questions in todo for q in questions if PROBES[q.probe].prepare is not None]
        asked = [self._inputs.resolved(cell, question) for cell, question in prepared]
        names = [digest(q) for q in asked]
        cells = Counter(names)
        shared = [q for name, q in dict(zip(names, asked, strict=True)).items() if cells[name] > 1]
        if not shared:
            return None
        self._home.mkdir(parents=True, exist_ok=True)
        path = self._home / "prepare.json"
        folders = {name: Path(folder) for name, folder in self._inputs.plan.task_folders.items()}
        write_preparation(path, Preparation(questions=tuple(shared), task_folders=folders, cache=self._inputs.cache))
        return path

    def _baseline(self, cell: Cell) -> Baseline | None:
        """The baseline, where it can be loaded beside the cell: its artifact is here, and the same packages run both. Other
        kernels would make it another baseline."""
        baseline = self._inputs.baseline(cell).cell
        artifact = self._inputs.artifact(baseline)
        device = self._inputs.plan.device
        together = envs.answering(baseline, device) == envs.answering(cell, device)
        return Baseline(cell=baseline, artifact_dir=artifact) if together and (artifact / MANIFEST).is_file() else None

    def _calibration(self, cell: Cell) -> CalibrationRows | None:
        path = self._inputs.calibration(cell)
        return None if path is None else CalibrationRows(**cell.scheme.options["calibration"], path=path)
