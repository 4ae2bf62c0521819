"""The frontier against brute force and against cases whose answer is known by hand."""

from __future__ import annotations

import numpy as np
import pytest

from harness.frontier import DRAWS, Point, draws_from_interval, frontier, side, stand


def brute_force(points: list[Point], better_x: str, better_y: str) -> set[str]:
    sign_x, sign_y = (1 if better_x == "lower" else -1), (1 if better_y == "lower" else -1)
    kept = set()
    for p in points:
        beaten = False
        for q in points:
            no_worse = sign_x * q.x <= sign_x * p.x and sign_y * q.y <= sign_y * p.y
            better = sign_x * q.x < sign_x * p.x or sign_y * q.y < sign_y * p.y
            beaten = beaten or (no_worse and better)
        if not beaten:
            kept.add(p.id)
    return kept


@pytest.mark.parametrize("better_x", ["lower", "higher"])
@pytest.mark.parametrize("better_y", ["lower", "higher"])
@pytest.mark.parametrize("seed", range(20))
def test_the_frontier_equals_brute_force_with_ties_and_equal_points(better_x: str, better_y: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    grid = 6 if seed % 2 else 1000  # a coarse grid makes many equal coordinates
    count = int(rng.integers(1, 40))
    points = [Point(id=f"p{i}", x=float(rng.integers(grid)), y=float(rng.integers(grid))) for i in range(count)]
    standings = frontier(points, better_x=better_x, better_y=better_y)  # type: ignore[arg-type]
    expected = brute_force(points, better_x, better_y)
    assert {s.id for s in standings if s.status == "frontier"} == expected
    assert [s.id for s in standings] == [p.id for p in points]
    assert all(s.probability == (1.0 if s.id in expected else 0.0) for s in standings)


def test_exact_points_are_dominated_and_never_tied() -> None:
    points = [Point(id="a", x=1, y=1), Point(id="b", x=1, y=2), Point(id="c", x=2, y=0.5)]
    by_id = {s.id: s for s in frontier(points, better_x="lower", better_y="lower")}
    assert by_id["b"].status == "dominated"
    assert by_id["b"].rivals == ("a",)
    assert by_id["a"].status == by_id["c"].status == "frontier"
    assert by_id["c"].ties == ()


def test_a_difference_inside_the_noise_is_a_tie_that_names_its_rival() -> None:
    points = [
        Point(id="a", x=4.0, y=10.0, y_draws=draws_from_interval(10.0, 9.0, 11.0, seed=1)),
        Point(id="b", x=4.0, y=10.1, y_draws=draws_from_interval(10.1, 9.1, 11.1, seed=2)),
        Point(id="c", x=4.0, y=20.0, y_draws=draws_from_interval(20.0, 19.0, 21.0, seed=3)),
    ]
    by_id = {s.id: s for s in frontier(points, better_x="lower", better_y="lower")}
    assert by_id["b"].status == "tied"
    assert by_id["b"].rivals == ("a",)
    assert 0.3 < by_id["b"].probability < 0.6
    assert by_id["c"].status == "dominated"
    assert by_id["c"].probability < 0.001


def test_a_cheaper_cell_dominates_beyond_the_noise_even_when_quality_is_tied() -> None:
    """Bytes are exact: no worse in quality and cheaper is domination."""
    points = [
        Point(id="cheap", x=3.0, y=10.0, y_draws=draws_from_interval(10.0, 9.0, 11.0, seed=1)),
        Point(id="dear", x=4.0, y=10.2, y_draws=draws_from_interval(10.2, 9.2, 11.2, seed=2)),
    ]
    by_id = {s.id: s for s in frontier(points, better_x="lower", better_y="lower")}
    assert by_id["dear"].status == "dominated"
    assert by_id["dear"].rivals == ("cheap",)


def test_a_dearer_frontier_cell_that_gains_nothing_beyond_the_noise_names_the_cheaper_one() -> None:
    points = [
        Point(id="cheap", x=3.0, y=10.2, y_draws=draws_from_interval(10.2, 9.2, 11.2, seed=1)),
        Point(id="dear", x=4.0, y=10.0, y_draws=draws_from_interval(10.0, 9.0, 11.0, seed=2)),
        Point(id="best", x=5.0, y=1.0, y_draws=draws_from_interval(1.0, 0.9, 1.1, seed=3)),
    ]
    by_id = {s.id: s for s in frontier(points, better_x="lower", better_y="lower")}
    assert by_id["dear"].status == "frontier"
    assert by_id["dear"].ties == ("cheap",)
    assert by_id["best"].ties == ()


def test_shared_draws_make_a_small_paired_difference_clear() -> None:
    """Two cells that move together differ by 0.1 in every draw: unpaired this is noise, paired it is not."""
    common = np.random.default_rng(0).standard_normal(DRAWS)
    points = [
        Point(id="a", x=4.0, y=10.0, y_draws=10.0 + common),
        Point(id="b", x=4.0, y=10.1, y_draws=10.1 + common),
    ]
    by_id = {s.id: s for s in frontier(points, better_x="lower", better_y="lower")}
    assert by_id["b"].status == "dominated"
    assert by_id["b"].probability == 0.0


def test_probabilities_agree_with_a_direct_count_over_draws() -> None:
    rng = np.random.default_rng(5)
    xs, ys = rng.normal(size=(7, 200)).round(1), rng.normal(size=(7, 200)).round(1)
    points = [Point(id=str(i), x=xs[i].mean(), y=ys[i].mean(), x_draws=xs[i], y_draws=ys[i]) for i in range(7)]
    counted = np.zeros(7)
    for draw in range(200):
        kept = brute_force([Point(id=str(i), x=xs[i, draw], y=ys[i, draw]) for i in range(7)], "lower", "higher")
        counted += [str(i) in kept for i in range(7)]
    found = [s.probability for s in frontier(points, better_x="lower", better_y="higher")]
    assert found == pytest.approx(counted / 200)


def test_no_points_give_no_frontier_and_a_point_that_is_not_finite_is_refused() -> None:
    assert frontier([], better_x="lower", better_y="lower") == []
    with pytest.raises(ValueError, match="not finite"):
        frontier([Point(id="a", x=float("nan"), y=1.0)], better_x="lower", better_y="lower")
    with pytest.raises(ValueError, match="better direction"):
        frontier([Point(id="a", x=1.0, y=1.0)], better_x="neither", better_y="lower")


def test_an_interval_without_width_is_an_exact_number() -> None:
    assert draws_from_interval(1.0, None, 2.0, seed=0) is None
    assert draws_from_interval(1.0, 1.0, 1.0, seed=0) is None
    draws = draws_from_interval(5.0, 4.0, 6.0, seed=0, count=100_000)
    assert draws is not None
    assert np.percentile(draws, [2.5, 97.5]) == pytest.approx([4.0, 6.0], abs=0.02)


@pytest.mark.parametrize("seed", range(12))
def test_the_share_of_resamples_on_the_frontier_is_that_of_each_resample_by_itself(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rounded = seed % 2 == 0  # many equal replicates
    points = []
    for i in range(int(rng.integers(2, 12))):
        x, y = float(rng.integers(6)), float(rng.integers(6))
        drawn = [None if rng.random() < 0.3 else value + rng.standard_normal(40) for value in (x, y)]
        x_draws, y_draws = (None if d is None else np.round(d) if rounded else d for d in drawn)
        points.append(Point(id=f"p{i}", x=x, y=y, x_draws=x_draws, y_draws=y_draws))
    held = dict.fromkeys((p.id for p in points), 0)
    for draw in range(40):
        one = [
            Point(
                id=p.id,
                x=p.x if p.x_draws is None else float(p.x_draws[draw]),
                y=p.y if p.y_draws is None else float(p.y_draws[draw]),
            )
            for p in points
        ]
        for name in brute_force(one, "lower", "higher"):
            held[name] += 1
    standings = frontier(points, better_x="lower", better_y="higher")
    if any(d is not None for p in points for d in (p.x_draws, p.y_draws)):
        assert {s.id: s.probability for s in standings} == {name: count / 40 for name, count in held.items()}


def test_a_side_serves_many_frontiers() -> None:
    rng = np.random.default_rng(3)
    ids, values = [f"p{i}" for i in range(9)], rng.uniform(size=(3, 9))
    draws = values[:, :, None] + 0.1 * rng.standard_normal((3, 9, 50))
    sides = [side(list(v), list(d), "lower") for v, d in zip(values, draws, strict=True)]
    for x, y in ((0, 1), (0, 2), (2, 1)):
        points = [
            Point(id=ids[i], x=values[x][i], y=values[y][i], x_draws=draws[x][i], y_draws=draws[y][i]) for i in range(len(ids))
        ]
        assert stand(ids, sides[x], sides[y]) == frontier(points, better_x="lower", better_y="lower")
