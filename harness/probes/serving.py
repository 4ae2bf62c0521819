"""A running server under load: time to first token, time per output token and throughput, by the number of clients at once.

Each client sends its next request once its last is answered (a closed loop). Every request is streamed, greedy, and asks for the
same number of new tokens after a prompt of random tokens that no earlier request had, so that a cache of prefixes helps nobody.
Times run from sending the request on an open connection to the first piece of text, and to the answer's end: they hold the
server's queue, its tokenizer and HTTP, which those of the probe `latency` do not, so they are other metrics under other names.
Tokens are the server's own count (`usage`); where it does not count, there is no time per token and no throughput, because
pieces of text are no tokens.

Intervals are binomial order-statistic intervals of the median (see latency.py). Requests of one run share the server, so they
are not independent, and the intervals say how the middle of this run is known, not how the next run will be.

Versions
1  2026-11-21  first definition
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from harness.errors import ServerTrouble, Unsupported
from harness.measure import conditions
from harness.methods.base import LoadRequest
from harness.metrics.serving import FAILED, GROUP, THROUGHPUT, TPOT, TPOT_P90, TTFT, TTFT_P90
from harness.probes.base import Probe, Session, of_interval
from harness.probes.requests import ProbeRequests
from harness.probes.rounds import median, nearest_rank, quiet
from harness.spec import Answer, Measurement, Metric, Question, Served

if TYPE_CHECKING:
    from harness.runtimes.openai_server import Load


def questions(requests: ProbeRequests) -> list[Question]:
    """One question for each number of clients."""
    load = requests.serving
    return [
        Question(
            probe="serving",
            subject=f"pp{load.prompt} tg{load.new} x{clients}",
            options={
                "clients": clients,
                "prompt": load.prompt,
                "new": load.new,
                "requests": max(load.requests, 2 * clients),
                "budget_seconds": load.budget,
            },
        )
        for clients in load.concurrency
    ]


def measure(session: Session, question: Question) -> Answer:
    """Unsupported for what is no server; ServerTrouble when no request at all was answered."""
    from harness.runtimes.openai_server import Server, run_load

    server = session.loaded.model if isinstance(session.cell.origin, Served) else _started(session)
    if not isinstance(server, Server):
        raise Unsupported("this cell is no running server")
    options = question.options
    shape = {name: int(options[name]) for name in ("clients", "requests", "prompt", "new")}
    warm = run_load(
        server, **{**shape, "requests": shape["clients"]}, seed=session.seed + 1, budget_seconds=options["budget_seconds"]
    )
    before = conditions.snapshot()
    with quiet():
        load = run_load(server, **shape, seed=session.seed + 2, budget_seconds=float(options["budget_seconds"]))
    during = conditions.between(before, conditions.snapshot())
    if not load.rows:
        raise ServerTrouble(f"none of {len(load.failures)} requests was answered: {(load.failures or warm.failures)[0]}", "error")
    sent = len(load.rows) + len(load.failures)
    notes = []
    short = sum(1 for row in load.rows if row.new is not None and row.new < shape["new"])
    if short:
        notes.append(f"{short} of {len(load.rows)} answers ended before {shape['new']} tokens: the server does not ignore_eos")
    if load.new_tokens is None:
        notes.append("the server does not count its tokens (no `usage` in the stream): no time per token, no throughput")
    if load.failures:
        notes.append(f"{len(load.failures)} of {sent} requests failed, the first with: {load.failures[0][:300]}")
    if load.prompt_tokens is not None and load.prompt_tokens != shape["prompt"]:
        notes.append(f"the server reads these prompts as {load.prompt_tokens} tokens (median), {shape['prompt']} were drawn")
    raw = [{"first": r.first_seconds, "last": r.last_seconds, "new": r.new, "pieces": r.pieces} for r in load.rows]
    blob = session.blob("serving", json.dumps({"seconds": load.seconds, "requests": raw}).encode(), "json")
    facts = {
        "shape": shape,
        "own_server": not isinstance(session.cell.origin, Served),
        "answered": len(load.rows),
        "failed": len(load.failures),
        "seconds": load.seconds,
        "prompt_tokens": load.prompt_tokens,
        "new_tokens": load.new_tokens,
        "ignore_eos": server.ignores_eos,
        "conditions": asdict(during),
        "notes": notes,
    }
    return Answer(measurements=tuple(_measurements(load, question.subject, blob)), facts=facts)


def _started(session: Session) -> Any:
    """The server that the cell's engine has started over its artifact, one for all questions of this process; it ends with it."""
    from harness.engines import ENGINES

    if "own server" not in session.memo:
        serve = ENGINES[session.cell.running.engine].serve
        if serve is None:
            raise Unsupported(f"the engine {session.cell.running.engine} has no server of its own")
        request = LoadRequest(
            artifact_dir=session.artifact_dir,
            model_dir=session.model_dir,
            origin=session.cell.origin,
            running=session.cell.running,
            device=session.device,
        )
        started = serve(request)
        session.memo["own server"] = (started, started.__enter__())  # closed by the end of this process
    return session.memo["own server"][1]


def _measurements(load: Load, subject: str, blob: str) -> list[Measurement]:
    from harness.stats import Interval

    firsts = [row.first_seconds for row in load.rows]
    steps = [row.tpot_seconds for row in load.rows if row.tpot_seconds is not None]
    sent = len(load.rows) + len(load.failures)

    def one(metric: Metric, interval: Interval, raw: str | None = None) -> Measurement:
        return of_interval(metric, interval, f"{metric.definition} [{subject}]", blob=raw)

    def plain(metric: Metric, value: float, n: int) -> Measurement:
        return one(metric, Interval(value=value, low=None, high=None, n=n))

    measured = [one(TTFT, median(firsts), blob), plain(TTFT_P90, nearest_rank(firsts, 0.9), len(firsts))]
    if steps:
        measured += [one(TPOT, median(steps), blob), plain(TPOT_P90, nearest_rank(steps, 0.9), len(steps))]
    if load.new_tokens is not None:
        measured.append(plain(THROUGHPUT, load.new_tokens / load.seconds, len(load.rows)))
    return [*measured, plain(FAILED, len(load.failures) / sent, sent)]


PROBE = Probe(
    name="serving",
    title=GROUP.title,
    version="1",
    metrics=GROUP.metrics,
    isolation="latency",
    questions=questions,
    measure=measure,
    own_server=True,
)
