"""A second answer to every case, written from docs/recommend.md without looking at the rules' code: plain dicts, every question
asked by brute force (a cell "would be the pick" is found by deleting its obstacles and deciding again). Slow on purpose.
"""

from __future__ import annotations

import copy
import itertools
import math
from functools import cmp_to_key
from typing import Any

Data = dict[str, Any]
LEVELS = {0.8: 0, 0.9: 1, 0.95: 2, 0.99: 3}


def oracle(cells: list[Data], limits: Data) -> Data:
    """The decision as plain data."""
    names: list[str] = []
    for cell in cells:
        wanted = limits["models"] is None or cell["model"] in limits["models"]
        if wanted and cell["model"] not in names:
            names.append(cell["model"])
    return {"recommendations": [_model(name, [c for c in cells if c["model"] == name], limits) for name in names]}


def _model(name: str, cells: list[Data], limits: Data) -> Data:
    judged = [_judge(cell, limits) for cell in cells]
    ranked = _rank(cells, judged, limits, [c["id"] for c, j in zip(cells, judged, strict=True) if not j["obstacles"]])
    picked = ranked[0] if ranked else None
    alike = []
    if picked is not None:
        chosen = next(c for c in cells if c["id"] == picked)
        alike = [c["id"] for c in cells if c["id"] != picked and c["id"] in chosen["alike"].get(limits["loss"], [])]
    return {
        "model": name,
        "pick": picked,
        "runner_up": ranked[1] if len(ranked) >= 2 else None,
        "order": ranked,
        "verdicts": judged,
        "alike": alike,
        "changes": _changes(cells, judged, limits, ranked),
        "settle": _settle(cells, judged, limits, ranked),
    }


# ---- one cell


def _peak(cell: Data, limits: Data) -> tuple[float | None, bool, str]:
    memory = cell["memory"]
    if memory["measured"] is None:
        return None, False, memory["reason"]
    here = [memory[key] if limits[key] is None else limits[key] for key in ("context", "batch")]
    if here == [memory["context"], memory["batch"]]:
        return memory["measured"], False, ""
    if memory["derivable"] != "":
        return None, True, memory["derivable"]
    held = sum(p["bytes_per_token"] * min(here[0], math.inf if p["window"] is None else p["window"]) for p in memory["cache"])
    return max([memory["load"], memory["fixed"] + held * here[1]]), True, ""


def _shape(cell: Data, limits: Data) -> tuple[Data | None, str]:
    speeds = cell["speeds"]
    if speeds == []:
        return None, "no latency was measured"
    wanted = speeds[0]["batch"] if limits["batch"] is None else limits["batch"]
    fitting = [s for s in speeds if s["batch"] == wanted]
    if fitting == []:
        there = ", ".join(str(b) for b in sorted({s["batch"] for s in speeds}))
        return None, f"no latency was measured at batch {wanted} (measured: {there})"
    if limits["context"] is None:
        return fitting[0], ""
    lengths = [s["prompt"] + s["new"] for s in fitting]
    nearest = min(abs(length - limits["context"]) for length in lengths)
    longest = max(length for length in lengths if abs(length - limits["context"]) == nearest)
    return fitting[lengths.index(longest)], ""


def _judge(cell: Data, limits: Data) -> Data:
    peak, derived, why = _peak(cell, limits)
    shape, no_shape = _shape(cell, limits)
    speed = {key: {"value": None, "reason": no_shape} if shape is None else shape[key] for key in ("tpot", "ttft")}
    loss = cell["losses"].get(limits["loss"])
    if loss is None:
        loss = {"value": None, "limits": [None] * 4, "n": 0, "unit": "items", "reason": "not measured"}
    high = loss["limits"][LEVELS[limits["confidence"]]]
    wrong: list[Data] = []

    def add(limit: str, state: str, allowed: float | None = None, needed: float | None = None, reason: str = "") -> None:
        wrong.append({"limit": limit, "state": state, "allowed": allowed, "needed": needed, "reason": reason})

    for what, key in (("method", "methods"), ("bits", "bits")):
        if limits[key] is not None and cell[what] not in limits[key]:
            add(what, "left out")
    costs = [("size", "max_size", cell["size"]["value"], cell["size"]["reason"]), ("memory", "max_memory", peak, why)]
    costs += [(key, f"max_{key}", speed[key]["value"], speed[key]["reason"]) for key in ("tpot", "ttft")]
    for what, key, value, reason in costs:
        allowed = limits[key]
        if allowed is None:
            continue
        if cell["simulated"] and what != "size":
            add(what, "simulated", allowed)
        elif value is None:
            add(what, "missing", allowed, None, reason)
        elif value > allowed:
            add(what, "over", allowed, value)
    if limits["max_loss"] is not None and not cell["baseline"]:
        wrong += _loss_wrong(loss, high, limits["max_loss"])
    hidden = cell["simulated"]
    return {
        "id": cell["id"],
        "qualifies": wrong == [],
        "size": cell["size"]["value"],
        "memory": None if hidden else peak,
        "derived": False if hidden else derived,
        "tpot": None if hidden else speed["tpot"]["value"],
        "ttft": None if hidden else speed["ttft"]["value"],
        "prompt": None if shape is None else shape["prompt"],
        "new": None if shape is None else shape["new"],
        "batch": None if shape is None else shape["batch"],
        "loss": loss["value"],
        "loss_high": high,
        "obstacles": wrong,
    }


def _loss_wrong(loss: Data, high: float | None, allowed: float) -> list[Data]:
    told = {"limit": "loss", "state": "missing", "allowed": allowed, "needed": None, "reason": ""}
    if loss["value"] is None:
        return [{**told, "reason": loss["reason"]}]
    if high is None:
        return [{**told, "reason": f"{loss['n']} {loss['unit']} are too few for a limit"}]
    return [] if high < allowed else [{**told, "state": "not shown", "needed": high}]


# ---- the order


def _rank(cells: list[Data], judged: list[Data], limits: Data, among: list[str]) -> list[str]:
    """Ids, best first."""
    place = {c["id"]: i for i, c in enumerate(cells)}
    verdict = {j["id"]: j for j in judged}
    by_id = {c["id"]: c for c in cells}

    def cheaper(a: str, b: str) -> int:
        for key in ("size", "memory", "tpot", "loss"):
            x, y = verdict[a][key], verdict[b][key]
            if x is None and y is not None:
                return 1
            if y is None and x is not None:
                return -1
            if x is not None and x != y:
                return -1 if x < y else 1
        return place[a] - place[b]

    by_cost = sorted(among, key=cmp_to_key(cheaper))
    key = {"size": None, "speed": "tpot", "quality": "loss"}[limits["prefer"]]
    rated = [i for i in by_cost if key is not None and verdict[i][key] is not None]
    if key is None or not rated:
        return by_cost
    smallest = min(verdict[i][key] for i in rated)
    best = next(i for i in rated if verdict[i][key] == smallest)
    if key == "loss":
        ahead = [i for i in rated if i == best or i in by_id[best]["alike"].get(limits["loss"], [])]
    else:
        spans = {i: _span(by_id[i], limits) for i in rated}
        ahead = [i for i in rated if i == best or spans[i][0] <= spans[best][1]]
    rest = [i for i in by_cost if i not in ahead]
    values = sorted({verdict[i][key] for i in rest if verdict[i][key] is not None})
    behind = list(itertools.chain.from_iterable([i for i in rest if verdict[i][key] == v] for v in values))
    return ahead + behind + [i for i in rest if verdict[i][key] is None]


def _span(cell: Data, limits: Data) -> tuple[float, float]:
    shape, _ = _shape(cell, limits)
    assert shape is not None
    number = shape["tpot"]
    return (
        number["value"] if number["low"] is None else number["low"],
        number["value"] if number["high"] is None else number["high"],
    )


# ---- what would change the answer


def _would_win(cells: list[Data], judged: list[Data], limits: Data, ident: str) -> bool:
    freed = copy.deepcopy(judged)
    for verdict in freed:
        if verdict["id"] == ident:
            verdict["obstacles"] = []
    return _rank(cells, freed, limits, [j["id"] for j in freed if not j["obstacles"]])[0] == ident


def _changes(cells: list[Data], judged: list[Data], limits: Data, ranked: list[str]) -> list[Data]:
    found = []
    for place, (cell, verdict) in enumerate(zip(cells, judged, strict=True)):
        wrong = verdict["obstacles"]
        if not wrong or (ranked and len(wrong) != 1) or not all(o["state"] in ("over", "not shown") for o in wrong):
            continue
        gain = "pick" if not ranked or _would_win(cells, judged, limits, cell["id"]) else None
        if gain is None:
            first = next(c for c in cells if c["id"] == ranked[0])
            its = next(j for j in judged if j["id"] == ranked[0])["loss"]
            told = cell["id"] not in first["alike"].get(limits["loss"], [])
            if None not in (its, verdict["loss"]) and verdict["loss"] < its and told:
                gain = "quality"
        if gain is not None:
            factor = max(o["needed"] / o["allowed"] if o["allowed"] > 0 else math.inf for o in wrong)
            found.append((len(wrong), factor, place, {"id": cell["id"], "gain": gain, "obstacles": wrong}))
    return [one[3] for one in sorted(found, key=lambda one: one[:3])]


def _settle(cells: list[Data], judged: list[Data], limits: Data, ranked: list[str]) -> list[Data]:
    found = []
    for place, (cell, verdict) in enumerate(zip(cells, judged, strict=True)):
        if [o["state"] for o in verdict["obstacles"]] != ["not shown"]:
            continue
        if ranked and not _would_win(cells, judged, limits, cell["id"]):
            continue
        loss = cell["losses"][limits["loss"]]
        critical = loss["critical"][LEVELS[limits["confidence"]]]
        if loss["value"] >= limits["max_loss"] or critical <= 0 or loss["n"] < 1:
            continue
        distance = (verdict["loss_high"] - loss["value"]) * (1 + 0.8416212335729143 / critical)
        ratio = distance / (limits["max_loss"] - loss["value"])
        more = max(1, math.ceil(loss["n"] * ratio * ratio) - loss["n"])
        found.append((more, place, {"id": cell["id"], "more": more, "n": loss["n"], "unit": loss["unit"]}))
    return [one[2] for one in sorted(found, key=lambda one: one[:2])]
