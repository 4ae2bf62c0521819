"""What makes two questions, two artifacts or two contexts the same.

`Inputs` holds everything that a plan names, as it lies on this machine, with digests. Keys and cache paths are derived from it
and from nothing else. So a stored answer is used again only where asking again would ask the same of the same.
"""

from __future__ import annotations

import datetime
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness import envs, plugins
from harness.child.bound import VERSION as BOUND_VERSION
from harness.child.bound import Rounding, bounded, rounding
from harness.child.job import stored_baseline_name
from harness.errors import BadInput
from harness.measure import machine
from harness.methods import METHODS, gguf_file
from harness.methods.finetune import ALL_WEIGHTS
from harness.models import chat, corpora, find, hub, sampled, source
from harness.models.corpora import SAMPLED
from harness.probes import PROBES, sequential
from harness.probes.prompting import CHAT, prompting_of
from harness.run.source import ROOT, source_digest
from harness.spec import DATA_SETS, Cell, Given, Json, Question, RunContext, Served, digest, to_json
from harness.suite.plan import Plan, PlannedCell
from harness.version import __version__

ARTIFACT_VERSION = 2
"""Raised when artifacts of all methods change. 2: they carry the source's generation rules, tokenizer and chat templates."""


TRAINING_VERSION = 1
"""Raised when the same rows and recipe give other trained weights."""


DIGESTS = "digests.json"
"""The file of the cache that remembers the hashes of files (`files.Hashes`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """The plan's models and texts as local paths with digests, and the packages of the main environment.

    `environments`: the locked packages of the other environments by name. Those that are not built yet are missing; who builds
    one adds it."""

    plan: Plan
    cache: Path
    model_dirs: Mapping[str, Path]
    weights: Mapping[str, str]
    texts: Mapping[str, Path]
    text_digests: Mapping[str, str]
    calibrations: Mapping[str, Path]
    calibration_digests: Mapping[str, str]
    packages: Mapping[str, str]
    environments: dict[str, Mapping[str, str]]
    data_commits: Mapping[str, str] = field(default_factory=dict)
    """Commits of the hub's data sets that tasks are made of, by `OWNER/NAME@REVISION`."""
    templates: Mapping[str, chat.Templates] = field(default_factory=dict)
    """The chat templates of the models that are asked in their words, by the model's name."""
    today: str = ""
    """The date that templates which ask for it are told in this run, ISO 8601."""

    def installed(self, method: str) -> Mapping[str, str] | None:
        """The packages of the environment that a method runs in; None when it is not built yet."""
        return self.installed_in(METHODS[method].environment)

    def installed_in(self, name: str) -> Mapping[str, str] | None:
        """The packages of an environment; None when it is not built yet."""
        return self.packages if name == envs.MAIN else self.environments.get(name)

    def source(self, cell: Cell) -> str:
        """Name of the model whose weights make the artifact: the cell's own, or a given checkpoint that is quantized already."""
        return cell.origin.checkpoint.name if isinstance(cell.origin, Given) else cell.model.name

    def view(self, model: str) -> Path:
        """Where the view of a model's folder lies (see `models/source.py`), made or not."""
        return source.place(self.weights[model], self.packages.get("transformers", ""), self.cache)

    def model_dir(self, model: str) -> Path:
        """The folder that methods, engines and probes read of a model: its view, or, of one that is not read through one (a given
        checkpoint, a server's), its own."""
        view = self.view(model)
        return view if source.known(view) is not None else self.model_dirs[model]

    def baseline(self, cell: Cell) -> PlannedCell:
        """The baseline of the cell's model."""
        return next(p for p in self.plan.cells if p.baseline and p.cell.model == cell.model)

    def served(self, cell: Cell) -> PlannedCell | None:
        """The cell whose artifact a server's cell serves that is started here; None for one that serves no cell's."""
        label = cell.origin.artifact if isinstance(cell.origin, Served) else ""
        return next(p for p in self.plan.cells if p.cell.label == label and p.cell.model == cell.model) if label else None

    def resolved(self, cell: Cell, question: Question) -> Question:
        """The question with the digest of a hub corpus in the place of its name, now that the text is here, with the commits of
        the hub's data sets, and with the digest of the chat template that the cell's model is asked in."""
        options = dict(question.options)
        if CHAT in options:
            asked = prompting_of(question)
            template = chat.chosen(self.templates[cell.model.name], asked.template, f"model {cell.model.name!r}")
            options.update(asked.of(template, self.today).options())
        if str(options.get("corpus_digest", "")).startswith("hub:"):
            options["corpus_digest"] = self.text_digests[question.subject]
        if DATA_SETS in options:
            options[DATA_SETS] = {name: self.data_commits[name] for name in options[DATA_SETS]}
        if options == question.options:
            return question
        return Question(probe=question.probe, subject=question.subject, options=options)

    def key(self, cell: Cell, question: Question) -> str:
        """Digest of the exact question; see `spec.Record`."""
        resolved = self.resolved(cell, question)
        probe = PROBES[question.probe]
        compared: Json = None
        if sequential.settings(question) is not None:
            compared = self.baseline_key(cell, question)
        elif probe.needs_stored_baseline or probe.isolation == "latency":
            baseline = self.baseline(cell).cell
            compared = {"origin": self._origin(baseline), "running": to_json(baseline.running)}
        return digest(
            {
                "model": cell.model.name,
                "weights": self.weights[cell.model.name],
                "origin": self._origin(cell),
                "running": to_json(cell.running),
                "method_version": METHODS[cell.method].version,
                "probe": probe.name,
                "probe_version": probe.version,
                "subject": resolved.subject,
                "options": to_json(resolved.options),
                "seed": self.plan.suite.seed,
                "device": self._device(),
                "baseline": compared,
                **_offered_by([], [probe.name]),
            }
        )

    def baseline_key(self, cell: Cell, question: Question) -> str:
        """Key of the baseline's answer to all items of a question that the cell is asked until a verdict."""
        return self.key(self.baseline(cell).cell, sequential.whole(question))

    def artifact(self, cell: Cell) -> Path:
        """Where the cell's artifact is cached: named by all that decides its bytes, library versions included, and by nothing of
        how it is run. Before its environment is built the versions are not known, and the place that is named holds nothing."""
        method = METHODS[cell.method]
        libraries = {
            "torch",
            "transformers",
            "safetensors",
            *(re.split(r"[^A-Za-z0-9._-]", r)[0].lower() for r in method.requirements),
        }
        identity = {
            "artifact_version": ARTIFACT_VERSION,
            "weights": self.weights[cell.model.name],
            "origin": self._origin(cell),
            "method_version": method.version,
            "packages": {n: v for n, v in (self.installed(method.name) or {}).items() if n.lower() in libraries},
            **({"loader": self._loader(method.loaded_by)} if method.loaded_by else {}),
            **({"sampler": self._sampler()} if on_own_text(cell) else {}),
            "device": self._device(),
            "seed": self.plan.suite.seed,
        }
        return self.cache / "artifacts" / f"{method.name}-{cell.bits:g}-{digest(identity)[:32]}"

    def calibration(self, cell: Cell) -> Path | None:
        """Where the text is that the cell is calibrated on, None where it is on none. A text that the model itself writes need
        not be there yet; its place is named by all that decides it."""
        wish = cell.scheme.options.get("calibration")
        if wish is None:
            return None
        if wish["corpus"] != SAMPLED:
            return self.calibrations[wish["corpus"]]
        origin = [self.weights[cell.model.name], sampled.recipe(wish["seed"]), self._sampler()]
        return self.cache / "sampled" / digest(origin)[:32] / f"text-{wish['samples'] * wish['length']}.txt"

    def training(self, cell: Cell) -> Path | None:
        """Where a cell that trains keeps its trained weights, named by all that decides them; None for one that does not. Cells
        that begin with the same training share it."""
        method = METHODS[cell.method]
        if method.trains is None:
            return None
        libraries = {"torch", "transformers", *(re.split(r"[^A-Za-z0-9._-]", r)[0].lower() for r in method.requirements)}
        shared = {"torch", "transformers"} if method.trains(cell.scheme) == ALL_WEIGHTS else libraries
        origin = self._origin(cell)
        identity = {
            "weights": self.weights[cell.model.name],
            "trains": method.trains(cell.scheme),
            "version": TRAINING_VERSION,
            "recipe": [origin["options"][name] for name in ("train", "calibration")],
            "text": origin["calibration_digest"],
            "packages": {n: v for n, v in self.packages.items() if n.lower() in shared},
            **({"sampler": self._sampler()} if on_own_text(cell) else {}),
            "device": self._device(),
        }
        return self.cache / "training" / digest(identity)[:32]

    def stored_baseline(self, cell: Cell, question: Question) -> Path:
        """Where the baseline's answers on the question's corpus are cached, for all cells of the model and for later runs."""
        baseline = self.baseline(cell).cell
        name = f"{self.artifact(baseline).name}|{digest(baseline.running)}|{stored_baseline_name(self.resolved(cell, question))}"
        return self.cache / "baselines" / digest(name)[:32]

    def bound(self, cell: Cell) -> Path:
        """Where the baseline's answers to the fixed tokens are cached, against which cells are held (see `child/bound.py`)."""
        baseline = self.baseline(cell).cell
        return self.cache / "bounds" / digest([self.artifact(baseline).name, baseline.running, BOUND_VERSION])[:32]

    def roundings(self, cell: Cell) -> tuple[Rounding, ...]:
        """The plain roundings that cells of the same model are compared with."""
        theirs = [p.cell for p in self.plan.cells if p.cell.model == cell.model]
        baseline = self.baseline(cell).cell
        wanted = (rounding(each) for each in theirs if bounded(each, baseline))
        return tuple(dict.fromkeys(each for each in wanted if each is not None))

    def _sampler(self) -> Json:
        """What computes the texts that models write."""
        return [self._device(), {name: self.packages.get(name) for name in ("torch", "transformers", "tokenizers")}]

    def _loader(self, method: str) -> dict[str, str]:
        """Versions of what loads the artifacts of another environment: another one has to pass the reload check anew."""
        wanted = {"torch", "transformers", *(re.split(r"[^A-Za-z0-9._-]", r)[0].lower() for r in METHODS[method].requirements)}
        return {n: v for n, v in self.packages.items() if n.lower() in wanted}

    def _origin(self, cell: Cell) -> Json:
        """What decides the cell's weights, with digests in the place of names."""
        identity = cell.origin.identity()
        calibration = cell.scheme.options.get("calibration")
        if calibration is not None:
            drawn = {name: value for name, value in calibration.items() if name != "corpus"}
            identity["options"] = {**cell.scheme.options, "calibration": drawn}
            identity["calibration_digest"] = (
                digest([self.weights[cell.model.name], sampled.recipe(calibration["seed"])])
                if calibration["corpus"] == SAMPLED
                else self.calibration_digests[calibration["corpus"]]
            )
        if isinstance(cell.origin, Given):
            identity["checkpoint"] = self.weights[cell.origin.checkpoint.name]
        if (served := self.served(cell)) is not None:
            identity["artifact"] = [self._origin(served.cell), METHODS[served.cell.method].version]
        return {**identity, **_offered_by([cell.method], [])}

    def _device(self) -> str:
        return self.plan.device.split(":")[0]


def on_own_text(cell: Cell) -> bool:
    """Whether a cell is calibrated on text that its model writes."""
    wish = cell.scheme.options.get("calibration")
    return wish is not None and wish["corpus"] == SAMPLED


def _offered_by(methods: Sequence[str], probes: Sequence[str]) -> dict[str, Json]:
    """The packages that offer these methods, their engines and these probes, with their versions; nothing for rows of ours."""
    offered = {f"{p.kind} {p.name}": p.provider for p in plugins.used(methods, probes)}
    return {"offered_by": offered} if offered else {}


def forget(cache: Path) -> None:
    """Forgets the hashes of files: who asks next reads every byte again."""
    (cache / DIGESTS).unlink(missing_ok=True)


def gather(plan: Plan, cache: Path, *, tell: hub.Fetching = hub.quiet) -> Inputs:
    """Fetches the plan's models and texts (BadInput says which cannot be had) and takes their digests. `tell` hears how much of
    what is fetched is here."""
    commits = _data_commits(plan)  # first: what cannot be had is said before anything is fetched
    folders = {m.name: find.fetch(m, cache, tell=tell) for m in plan.models}
    _check_origins(plan, folders)
    texts = {name: corpora.fetch(source, cache) for name, source in plan.texts.items()}
    calibrations = {name: corpora.fetch(source, cache) for name, source in plan.calibrations.items()}
    weights = {name: find.weights_digest(folder, cache / DIGESTS) for name, folder in folders.items()}
    return _inputs(plan, cache, folders=folders, weights=weights, texts=texts, calibrations=calibrations, data_commits=commits)


def _check_origins(plan: Plan, folders: Mapping[str, Path]) -> None:
    """BadInput for a GGUF file that was made of another model than its cell's, now that both are here."""
    for cell in (p.cell for p in plan.cells):
        if isinstance(cell.origin, Given) and find.is_one_file(cell.origin.checkpoint) and not find.is_one_file(cell.model):
            name = cell.origin.checkpoint.name
            why = gguf_file.another_model(find.shape_of(folders[name]), find.shape_of(folders[cell.model.name]).config)
            if why:
                raise BadInput(f"{name!r} {why}; correct `of`")


def _inputs(
    plan: Plan,
    cache: Path,
    *,
    folders: Mapping[str, Path],
    weights: Mapping[str, str],
    texts: Mapping[str, Path],
    calibrations: Mapping[str, Path],
    data_commits: Mapping[str, str],
) -> Inputs:
    built = {e.name: envs.packages(e.name, cache) for e in envs.needed((p.cell for p in plan.cells), plan.device)}
    return Inputs(
        plan=plan,
        cache=cache,
        model_dirs=folders,
        weights=weights,
        texts=texts,
        text_digests={name: corpora.digest(path) for name, path in texts.items()},
        calibrations=calibrations,
        calibration_digests={name: corpora.digest(path) for name, path in calibrations.items()},
        packages=machine.packages(),
        environments={name: packages for name, packages in built.items() if packages is not None},
        data_commits=data_commits,
        templates=_templates(plan, folders),
        today=datetime.date.today().isoformat(),
    )


def at_hand(plan: Plan, cache: Path) -> Inputs | None:
    """The same where nothing has to be fetched, filled or hashed at length for it: models, texts and environments as an earlier
    run left them. None where anything is missing, or where tasks are made of the hub's data, whose commits only the hub knows."""
    if any(DATA_SETS in q.options for p in plan.cells for q in p.questions):
        return None
    folders = {m.name: find.at_hand(m, cache) for m in plan.models}
    here = {name: folder for name, folder in folders.items() if folder is not None}
    weights = {name: find.remembered_digest(folder, cache / DIGESTS) for name, folder in here.items()}
    known = {name: value for name, value in weights.items() if value is not None}
    texts = {name: Path(text.path) for name, text in plan.texts.items() if text.path is not None}
    calibrations = {name: Path(text.path) for name, text in plan.calibrations.items() if text.path is not None}
    if known.keys() != folders.keys() or texts.keys() != plan.texts.keys() or calibrations.keys() != plan.calibrations.keys():
        return None
    return _inputs(plan, cache, folders=here, weights=known, texts=texts, calibrations=calibrations, data_commits={})


def _templates(plan: Plan, folders: Mapping[str, Path]) -> dict[str, chat.Templates]:
    """The chat templates of the models that are asked in their words. BadInput where a model has not the one that is meant."""
    found: dict[str, chat.Templates] = {}
    for planned in plan.cells:
        name = planned.cell.model.name
        for question in planned.questions:
            if CHAT in question.options:
                found.setdefault(name, chat.in_folder(folders[name]))
                chat.chosen(found[name], prompting_of(question).template, f"model {name!r}")
    return found


def _data_commits(plan: Plan) -> dict[str, str]:
    """The commits that the revisions of the tasks' data sets name now. BadInput for one that cannot be had."""
    tasks = {name: q.subject for p in plan.cells for q in p.questions for name in q.options.get(DATA_SETS, {})}
    commits = {}
    for name, task in tasks.items():
        repo, _, revision = name.rpartition("@")
        commit = hub.commit(repo, None if revision == "main" else revision, kind="dataset", what=f"task {task!r}")
        if commit is None:
            raise hub.unreachable(repo, what=f"task {task!r}", instead="take the task out of the suite")
        hub.check_access(repo, kind="dataset", what=f"task {task!r}")
        commits[name] = commit
    return commits


def context(plan: Plan, *, packages: Mapping[str, str], threads: int) -> RunContext:
    """The conditions of a run, as its header holds them."""
    return RunContext(
        host=machine.host_id(),
        python=sys.version.split()[0],
        packages_digest=machine.packages_digest(packages),
        harness=__version__,
        commit=machine.commit(ROOT),
        source=source_digest(),
        device=plan.device,
        threads=threads,
        machine=to_json(machine.facts()),
        packages=packages,
        plugins=plugins.sources(plugins.used({p.cell.method for p in plan.cells}, plan.suite.probes)),
    )
