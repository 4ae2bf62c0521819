"""Plans: every request's tokens and targets are found again in headers and rows, whatever is shared."""

import random

import numpy as np
import pytest

from harness.scoring.plan import Plan, common_prefix, header_order, make_plan

Request = tuple[list[int], list[int]]


def few_shot(seed: int = 0, *, subjects: int = 3, each: int = 8, header: int = 120) -> list[Request]:
    source = random.Random(seed)

    def ids(count: int) -> list[int]:
        return [source.randrange(5, 90) for _ in range(count)]

    found = []
    for _ in range(subjects):
        shots = [1, *ids(header)]
        for _ in range(each):
            context = shots + ids(source.randrange(4, 20))
            found += [(context, ids(source.randrange(1, 9))) for _ in range(4)]
    return found


def path(plan: Plan, owner: int, offset: int) -> list[int]:
    """The token ids that a position of the plan has seen, its own included: read off headers, rows and `last` alone."""

    def chain(header: int, stop: int | None = None) -> list[int]:
        if header < 0:
            return []
        return chain(plan.headers[header].parent) + plan.headers[header].tokens[:stop].tolist()

    if owner < 0:
        return chain(-1 - owner, offset + 1)
    row = plan.rows[owner]
    seen = [j for j in range(offset + 1) if row.last[j] > offset]
    above = chain(row.header)
    assert [int(d) for d in row.depth[seen]] == list(range(len(above), len(above) + len(seen)))
    return above + row.tokens[seen].tolist()


def assert_answers(plan: Plan, requests: list[Request], max_length: int) -> None:
    for number, (context, continuation) in enumerate(requests):
        pairs = plan.request_pairs[plan.request_start[number] : plan.request_start[number + 1]]
        assert len(pairs) == len(continuation)
        whole = (context + continuation)[-(max_length + 1) :]
        for place, (pair, wanted) in enumerate(zip(pairs, continuation, strict=True)):
            position = plan.position[pair]
            assert plan.target[pair] == wanted
            assert path(plan, plan.owner[position], plan.offset[position]) == whole[: len(whole) - len(continuation) + place]


@pytest.mark.parametrize("row_tokens", [24, 60, 512])
@pytest.mark.parametrize("overhead", [0.0, 96.0])
def test_every_target_is_asked_after_exactly_its_own_prefix(row_tokens: int, overhead: float) -> None:
    requests = few_shot()
    requests += [requests[0], (requests[0][0], requests[0][1][:1]), (requests[5][0][:-3], [4]), (requests[9][0][:50], [7, 8])]
    plan = make_plan(requests, max_length=4096, hidden_size=256, row_tokens=row_tokens, header_overhead=overhead)
    assert_answers(plan, requests, 4096)


def test_a_header_is_computed_once_and_nested_headers_below_it() -> None:
    requests = few_shot(subjects=2, each=20)
    instruction = list(range(100, 180))
    requests = [(instruction + context, continuation) for context, continuation in requests]
    plan = make_plan(requests, max_length=4096, hidden_size=256, row_tokens=64)
    assert_answers(plan, requests, 4096)
    assert sorted(header.parent for header in plan.headers)[0] == -1
    assert max(header.parent for header in plan.headers) >= 0
    tokens = [tuple(header.tokens.tolist()) for header in plan.headers]
    assert len(tokens) == len(set(tokens))
    distinct = {tuple((c + k)[: n + 1]) for c, k in requests for n in range(len(c + k) - 1)}
    assert plan.tokens <= 1.25 * len(distinct), "little is computed twice"
    assert plan.plain_tokens > 8 * plan.tokens


def test_headers_are_entered_after_their_parents_and_left_after_their_children() -> None:
    requests = few_shot(subjects=4, each=20)
    requests = [([7] * 100 + context, continuation) for context, continuation in requests]
    plan = make_plan(requests, max_length=4096, hidden_size=256, row_tokens=64)
    live: set[int] = set()
    entered = []
    for number, enter in header_order(plan):
        parent = plan.headers[number].parent
        assert parent < 0 or parent in live
        live.add(number) if enter else live.remove(number)
        entered += [number] if enter else []
    assert sorted(entered) == list(range(len(plan.headers)))
    assert not live


def test_equal_inputs_are_run_once_even_without_sharing() -> None:
    requests: list[Request] = [([1, 2, 3], [4]), ([1, 2, 3], [5]), ([1, 2], [3, 4])]
    plan = make_plan(requests, max_length=64, hidden_size=256, share=False)
    assert len(plan.rows) == 1
    assert plan.tokens == 3
    assert_answers(plan, requests, 64)


def test_without_sharing_every_row_is_one_plain_input() -> None:
    plan = make_plan(few_shot(), max_length=4096, hidden_size=256, share=False)
    assert not plan.shared
    assert all(row.chain for row in plan.rows)


def test_inputs_beyond_the_limit_stay_plain_and_others_share() -> None:
    requests = [*few_shot(each=4), ([3] * 300, [4, 5]), ([3] * 300, [6])]
    plan = make_plan(requests, max_length=4096, hidden_size=256, share_limit=200)
    assert plan.shared
    long = [row for row in plan.rows if len(row.tokens) > 290]
    assert all(row.chain and row.header == -1 for row in long)
    assert_answers(plan, requests, 4096)


def test_long_inputs_are_cut_from_the_left_as_lm_eval_cuts_them() -> None:
    requests: list[Request] = [(list(range(3, 80)), [90, 91, 92]), (list(range(3, 10)), [90])]
    plan = make_plan(requests, max_length=16, hidden_size=256)
    assert plan.deepest == 16
    assert_answers(plan, requests, 16)


@pytest.mark.parametrize("request_", [([], [1]), ([1], []), ([1], [2] * 17)])
def test_a_request_that_cannot_be_scored_is_refused(request_: Request) -> None:
    with pytest.raises(ValueError, match="a request needs"):
        make_plan([request_], max_length=16, hidden_size=256)


def test_a_plan_survives_its_file_and_a_broken_file_is_no_plan() -> None:
    plan = make_plan(few_shot(), max_length=4096, hidden_size=256, row_tokens=40)
    again = Plan.from_bytes(plan.to_bytes())
    assert plan.headers
    assert_answers(again, few_shot(), 4096)
    assert [row.header for row in again.rows] == [row.header for row in plan.rows]
    assert again.to_bytes() == plan.to_bytes()
    for data in (b"", b"nonsense", plan.to_bytes()[:-40]):
        with pytest.raises(ValueError, match=r".+"):
            Plan.from_bytes(data)


def test_the_same_requests_give_the_same_plan_and_order_changes_only_the_answers_order() -> None:
    requests = few_shot()
    shuffled = requests[:]
    random.Random(4).shuffle(shuffled)
    plan, other = (make_plan(r, max_length=4096, hidden_size=256) for r in (requests, shuffled))
    assert make_plan(requests, max_length=4096, hidden_size=256).to_bytes() == plan.to_bytes()
    assert len(plan.rows) == len(other.rows)
    for a, b in zip(plan.rows, other.rows, strict=True):
        assert np.array_equal(a.tokens, b.tokens)
        assert np.array_equal(a.last, b.last)


def test_an_empty_plan_is_a_plan() -> None:
    plan = Plan.from_bytes(make_plan([], max_length=16, hidden_size=256).to_bytes())
    assert plan.requests == 0
    assert plan.tokens == 0


def test_common_prefix_counts_equal_leading_tokens() -> None:
    source = random.Random(0)
    for _ in range(200):
        a = tuple(source.randrange(2) for _ in range(source.randrange(9)))
        b = tuple(source.randrange(2) for _ in range(source.randrange(9)))
        expected = next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        assert common_prefix(a, b) == expected
