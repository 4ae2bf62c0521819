"""Which package, or which commit, made a cell worse, or fail: asks its questions again in states between a green and a red one.

A state is an environment with some packages as in BASE and the others as in CANDIDATE, or a checkout of a commit. In each the
questions of the cell's alarms are asked by `run --only`, in a process of its own and with a cache of its own, so that nothing
that another state made is taken for this one's; the gate says whether the cell is worse than BASE there. Answers lie in
`bisect/` beside the candidate, a folder for each state: who is interrupted goes on there.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from harness import envs, store
from harness.child.fork_server import harness_alone
from harness.envs import disk, overlay
from harness.errors import BadInput, StoreError, UnknownName
from harness.files import tail
from harness.gate.confirm import keys
from harness.gate.types import GateReport
from harness.proof import seal_path
from harness.run.delta import Answer, first_bad, isolate
from harness.run.only import question_name
from harness.spec import Cell, EnvironmentRecord, digest
from harness.store import Run

CHANGES_NUMBERS = False
"""It chooses what is asked where; how is decided elsewhere."""

APART = "bisect"
"""The folder of answers, beside the candidate."""

SHARED = ("corpora", "datasets", "shapes", "machine", "digests.json")
"""Of a cache, what is fetched or known by its content. All else may depend on a version and is made anew in every state."""

OURS = "llm-quant-harness"
"""Its code differs by commits, not by packages."""

_ASK = "import json, sys, harness; given = json.loads(sys.argv[1]); harness.run(given.pop('suite'), **given)"
"""The package's public function, which is the same at every commit that has it."""

Tell = Callable[[str], None]
_End: TypeAlias = tuple[str, Callable[[], Answer]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A package that differs, in the main environment or in the one called `place`."""

    place: str
    package: str
    before: str
    after: str

    @property
    def words(self) -> str:
        where = "" if self.place == envs.MAIN else f" in the environment {self.place}"
        return f"{self.package} {self.before or '(not installed)'} -> {self.after or '(not installed)'}{where}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sought:
    """What is asked in every state: the cell's worse or failed squares with their questions by name; `judge` says what a run is
    against BASE. `suite`: what `run` is given."""

    base: Run
    candidate: Run
    cell: Cell
    report: GateReport
    questions: tuple[str, ...]
    suite: str
    judge: Callable[[Run], GateReport]

    @property
    def folder(self) -> Path:
        named = [self.base.header.run, self.candidate.header.run, self.cell.identity(), self.questions]
        return self.candidate.path.parent / APART / digest(named)[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """How it ended. `cause`: the changes or commits that are left, one where all went well; empty where nothing can be named, and
    `why` says so. `left`: differences that could not be tried, each with the reason."""

    cause: tuple[str, ...] = ()
    why: str = ""
    left: tuple[str, ...] = ()


def seek(base: Run, candidate: Run, wish: str, report: GateReport, suite: str, judge: Callable[[Run], GateReport]) -> Sought:
    """What to ask for: what is worse, or else what failed. BadInput for a cell that the candidate has not, or of which nothing is
    either."""
    cell = _cell(candidate, wish)
    mine = [f for f in report.findings if (f.square.model, f.square.label) == (cell.model.name, cell.label)]
    own = tuple(f for f in mine if f.alarm) or tuple(f for f in mine if f.verdict == "failed")
    if not own:
        raise BadInput(
            f"{cell.name}: nothing of it is worse in CANDIDATE than in BASE, and nothing failed, so there is nothing to look for"
        )
    report = replace(report, findings=own)
    wanted = set(keys(report, candidate, own))
    names = dict.fromkeys(question_name(r.cell, r.question) for r in candidate.records if r.key in wanted)
    return Sought(base=base, candidate=candidate, cell=cell, report=report, questions=tuple(names), suite=suite, judge=judge)


def _cell(run: Run, wish: str) -> Cell:
    cells = [p.cell for p in run.plan.cells]
    found = [c for c in cells if wish in (c.label, c.name, f"{c.model.name}/{c.label}")]
    if len(found) > 1:
        raise BadInput(f"{wish!r} is the name of {len(found)} cells; say which: {', '.join(c.name for c in found)}")
    if not found:
        raise UnknownName("cell", wish, [c.name for c in cells], where="CANDIDATE")
    return found[0]


# ---- packages ----


def changes(sought: Sought) -> tuple[list[Change], list[str]]:
    """The packages that differ between the runs where the cell was measured, and those that cannot be tried, with the reason."""
    places = {envs.MAIN: (sought.base.header.context.packages, sought.candidate.header.context.packages)}
    before, after = (_environment(run, sought.cell) for run in (sought.base, sought.candidate))
    if before is not None and after is not None:
        places[after.name] = (before.packages, after.packages)
    differing = [
        Change(place=place, package=name, before=old.get(name, ""), after=new.get(name, ""))
        for place, (old, new) in places.items()
        for name in sorted(old.keys() | new.keys())
        if old.get(name, "") != new.get(name, "") and name != OURS
    ]
    left = [
        f"{c.words}: a package that is not there in one of the runs cannot be taken away"
        for c in differing
        if not (c.before and c.after)
    ]
    return [c for c in differing if c.before and c.after], left


def _environment(run: Run, cell: Cell) -> EnvironmentRecord | None:
    """The environment that the cell was measured in, where it is not the main one."""
    names = {r.environment for r in run.records if (r.cell.model.name, r.cell.label) == (cell.model.name, cell.label)}
    return next((listed for name, listed in run.environments.items() if name in names), None)


def packages(sought: Sought, cache: Path, tell: Tell) -> Found:
    """Bisects the packages that differ."""
    differing, left = changes(sought)
    if not differing:
        what = "no package differs between the two runs"
        return Found(
            why=f"{what}{' that can be tried' if left else ''}; commits are tried with: --with 'git checkout {{commit}}'",
            left=tuple(left),
        )
    tell(f"{len(differing)} packages differ: {'; '.join(c.words for c in differing)}")
    asking = _Asking(sought, cache, tell)

    def answer(new: Sequence[Change]) -> Answer:
        return asking.in_packages(differing, new)

    ends = ("every package as in BASE", lambda: answer([])), ("every package as in CANDIDATE", lambda: answer(differing))
    if wrong := asking.wrong_end(*ends):
        return Found(why=wrong, left=tuple(left))
    return Found(cause=tuple(c.words for c in isolate(differing, answer).cause), left=tuple(left))


# ---- commits ----


def commits(sought: Sought, template: str, repo: Path, cache: Path, tell: Tell) -> Found:
    """Bisects the commits between the two runs'. `template` is a command with `{commit}`, run in `repo` without a shell."""
    first, last = (_commit(run, who) for run, who in ((sought.base, "BASE"), (sought.candidate, "CANDIDATE")))
    words = shlex.split(template)
    if not any("{commit}" in word for word in words):
        raise BadInput(f"--with {template!r}: says nowhere {{commit}}; an example: --with 'git checkout {{commit}}'")
    if (repo / "harness").resolve() == Path(__file__).resolve().parents[1]:
        raise BadInput(f"--repo {repo}: this quant-harness runs from there and must not change meanwhile; name a clone of it")
    if first == last:
        return Found(why="both runs were made at the same commit; packages are tried without --with")
    if _git(repo, "merge-base", "--is-ancestor", first, last) is None:
        raise BadInput(
            f"--repo {repo}: {first[:12]} (BASE) is no ancestor of {last[:12]} (CANDIDATE) there, or one is not known there"
        )
    between = (_git(repo, "rev-list", "--reverse", "--ancestry-path", f"{first}..{last}") or "").split()
    tell(f"{len(between)} commits")
    asking = _Asking(sought, cache, tell)

    def answer(commit: str) -> Answer:
        return asking.at_commit(commit, words, repo)

    ends = (f"BASE's commit {first[:12]}", lambda: answer(first)), (f"CANDIDATE's commit {last[:12]}", lambda: answer(last))
    if wrong := asking.wrong_end(*ends):
        return Found(why=wrong)
    return Found(cause=tuple(_named(repo, c) for c in first_bad(between, lambda c: "red" if c == last else answer(c))))


def _commit(run: Run, who: str) -> str:
    commit = run.header.context.commit
    if commit is None:
        raise BadInput(f"{who} does not know its commit, so that commits cannot be bisected")
    if not re.fullmatch(r"[0-9a-f]{40,64}", commit):
        raise BadInput(
            f"{who} was measured at {commit}, with changes that no commit holds, so that commits cannot tell what it ran"
        )
    return commit


def _git(repo: Path, *arguments: str) -> str | None:
    done = subprocess.run(["git", "-C", str(repo), *arguments], capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else None


def _named(repo: Path, commit: str) -> str:
    subject = (_git(repo, "log", "-1", "--format=%s", commit) or "").strip()
    return f"{commit[:12]} {subject}".strip()


# ---- one state ----


class _Asking:
    """Asks the sought questions in one state after another. `why`: what the last unresolved state said."""

    def __init__(self, sought: Sought, cache: Path, tell: Tell) -> None:
        self.sought, self.cache, self.tell = sought, cache.expanduser().resolve(), tell
        self.why = ""

    def wrong_end(self, first: _End, last: _End) -> str:
        """Why there is nothing to look for between two states, each with its name; '' where the first is green, the last red."""
        for (name, answer), wanted in ((first, "green"), (last, "red")):
            found = answer()
            if found == "unresolved":
                return f"with {name} there is no answer here: {self.why}"
            if found != wanted:
                broken = all(f.verdict == "failed" for f in self.sought.report.findings)
                bad = "failing" if broken else "worse"
                seen = f"{bad} here as well" if found == "red" else f"not {bad} here"
                other = "something else did it (weights, the machine, what is not tried)"
                return f"with {name} the cell is {seen}: it is flaky, or {other}"
        return ""

    def in_packages(self, differing: Sequence[Change], new: Sequence[Change]) -> Answer:
        """With these packages as in CANDIDATE and the others as in BASE."""
        versions: dict[str, dict[str, str]] = {}
        for change in differing:
            versions.setdefault(change.place, {})[change.package] = change.after if change in new else change.before
        name = f"{len(new)} of {len(differing)} packages as in CANDIDATE ({', '.join(c.package for c in new) or 'none'})"
        state = self.sought.folder / f"packages-{digest(versions)[:16]}"
        if (known := self._judged(state, name)) is not None:
            return known
        try:
            places = {place: overlay.obtain(place, wanted, self.cache, self.tell) for place, wanted in versions.items()}
        except envs.BuildFailed as error:
            return self._unresolved(name, str(error))
        main = places.pop(envs.MAIN, None)
        with self._own_cache(places) as cache, disk.scratch(self.cache) as home:
            python = Path(sys.executable) if main is None else disk.python(main)
            self._run(state, python, cache, [harness_alone(home)], name)
        return self._judged(state, name, versions.get(envs.MAIN, {})) or self._unresolved(name, self._last_words(state))

    def at_commit(self, commit: str, words: Sequence[str], repo: Path) -> Answer:
        """With the repository at a commit, put there by a command."""
        state, name = self.sought.folder / f"commit-{commit[:16]}", f"commit {commit[:12]}"
        if (known := self._judged(state, name)) is not None:
            return known
        command = [word.replace("{commit}", commit) for word in words]
        try:
            done = subprocess.run(command, cwd=repo, capture_output=True, text=True, check=False)
        except OSError as error:
            raise BadInput(f"--with: {command[0]!r} cannot be run in {repo} ({error.strerror})") from None
        if done.returncode != 0:
            return self._unresolved(name, f"{shlex.join(command)} left with {done.returncode}: {_last_line(done.stderr)}")
        with self._own_cache({}) as cache:
            self._run(state, Path(sys.executable), cache, [repo.resolve()], name)
        return self._judged(state, name) or self._unresolved(name, self._last_words(state))

    def _run(self, state: Path, python: Path, cache: Path, path: Sequence[Path], name: str) -> None:
        """Asks; what is said goes into the state's log."""
        self.tell(f"asking {len(self.sought.questions)} questions: {name}")
        state.mkdir(parents=True, exist_ok=True)
        context = self.sought.candidate.header.context
        asked = {
            "suite": self.sought.suite,
            "only": self.sought.questions,
            "results": str(state),
            "cache": str(cache),
            "device": context.device,
            "threads": context.threads,
        }
        old = os.environ.get("PYTHONPATH", "")
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, path), *([old] if old else [])])}
        with (state / "log.txt").open("w", encoding="utf-8") as log:
            command = [str(python), "-P", "-c", _ASK, json.dumps(asked)]
            subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=env, check=False)

    def _judged(self, state: Path, name: str, wanted: Mapping[str, str] | None = None) -> Answer | None:
        """What a state's finished run says; None while there is none."""
        runs = [path for path in sorted(state.glob("*/confirm/*.jsonl")) if seal_path(path).is_file()]
        if not runs:
            return None
        try:
            run = store.read(runs[-1])
        except StoreError as error:
            return self._unresolved(name, str(error))
        installed = run.header.context.packages
        apart = [f"{p} is {installed.get(p)}" for p, version in (wanted or {}).items() if installed.get(p) != version]
        if apart:
            return self._unresolved(name, f"another package shadows it ({', '.join(apart)}): PYTHONPATH, perhaps")
        found = {f.square: f for f in self.sought.judge(run).findings}
        worse = [f for s in (a.square for a in self.sought.report.findings) if (f := found.get(s)) is not None]
        verdicts = {f.verdict for f in worse}
        if verdicts & {"regressed", *({"failed"} & {f.verdict for f in self.sought.report.findings})}:
            self.tell(f"red: {name}")
            return "red"
        if verdicts and verdicts <= {"within noise", "improved"}:
            self.tell(f"green: {name}")
            return "green"
        return self._unresolved(name, "; ".join(sorted({f"{f.square.name}: {f.verdict} {f.reason}".strip() for f in worse})))

    def _unresolved(self, name: str, why: str) -> Answer:
        self.why = why or "it said nothing"
        self.tell(f"no answer: {name}: {self.why}")
        return "unresolved"

    def _last_words(self, state: Path) -> str:
        return _last_line(tail(state / "log.txt"))

    @contextlib.contextmanager
    def _own_cache(self, environments: Mapping[str, Path]) -> Iterator[Path]:
        """A cache that shares what is fetched, has these environments in the place of those of their names, and is gone after
        the block."""
        with disk.scratch(self.cache) as folder:
            for shared in (self.cache / each for each in SHARED):
                if shared.exists():
                    (folder / shared.name).symlink_to(shared)
            own = folder / "environments"
            own.mkdir()
            for environment in envs.environments().values():
                there = environments.get(environment.name, envs.place(environment, self.cache))
                if environment.name != envs.MAIN and there.is_dir():
                    (own / environment.digest).symlink_to(there)
            yield folder


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
