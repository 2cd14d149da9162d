"""Curves over tuning-set size: the tasks of a point, intervals over seeds, and fits of a known power law."""

from __future__ import annotations

import dataclasses
import math
import random
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise

import pytest

from orchestrator.report.data_efficiency import (
    Curve,
    Point,
    PowerLaw,
    curves,
    efficiency_table,
    fit_power_law,
    size_to_reach,
)
from orchestrator.spec.plan import StudyPlan
from orchestrator.spec.schema import Search
from orchestrator.study.summary import StudySummary
from orchestrator.study.trial import Trial, TrialState
from trainer.catalog import BUNDLED
from trainer.config import TrainConfig

ELSEWHERE = "vit_base_patch16_224.mae"


def summary(
    task: str,
    size: float | int | str,
    scores: Mapping[int, float | None] | Sequence[float],
    *,
    images: float | None = 100.0,
    method: str = "spt_deep",
    backbone: str = BUNDLED,
) -> StudySummary:
    """Return a study with these final scores by seed; None means that the trial failed."""
    plan = StudyPlan(
        task=task, backbone=backbone, method=method, train_size=size, fixed={}, space={}, search=Search(trials=1)
    )
    by_seed = scores if isinstance(scores, Mapping) else dict(enumerate(scores))
    finals = [
        Trial(
            trial_id=f"{number}",
            study=plan.key,
            phase="final",
            number=number,
            params={"seed": seed},
            config=TrainConfig(task="demo/digits", method="linear", seed=seed),
            state=TrialState.RUNNING if score is None else TrialState.COMPLETE,
            score=score,
            last_metrics={} if images is None else {"train/images": images},
        )
        for number, (seed, score) in enumerate(by_seed.items())
    ]
    return StudySummary(
        plan=plan,
        num_planned=0,
        states=Counter(),
        best=None,
        final_trials=finals,
        failed_trials=[],
        stop_reason=None,
        seconds=0.0,
    )


def curve(*points: tuple[float, float], label: str = "spt_deep", tasks: tuple[str, ...] = ("a",)) -> Curve:
    measured = tuple(Point(size=images, mean=mean) for images, mean in points)
    return Curve(label=label, method=label, backbone=BUNDLED, points=measured, tasks=tasks)


def law_points(
    a: float, b: float, c: float, sizes: Sequence[float], noise: float = 0.0, seed: int = 0, error: float | None = None
) -> list[Point]:
    draw = random.Random(seed)
    return [Point(size=n, mean=1 - (a * n**-b + c) + draw.gauss(0, noise), error=error) for n in sizes]


def test_a_point_is_the_mean_over_tasks_with_the_t_interval_over_seeds() -> None:
    (result,) = curves(
        [
            summary("vtab/dtd", 0.1, [0.50, 0.52, 0.57], images=80.0),
            summary("vtab/svhn", 0.1, [0.70, 0.74, 0.75], images=120.0),
        ]
    )
    (point,) = result.points
    per_seed = [0.60, 0.63, 0.66]
    assert point.mean == pytest.approx(0.63)
    assert point.size == 100.0, "the mean over tasks"
    assert point.error == pytest.approx(statistics.stdev(per_seed) / math.sqrt(3))
    assert point.low is not None
    assert point.high is not None
    assert point.mean - point.low == pytest.approx(4.302653 * statistics.stdev(per_seed) / math.sqrt(3)), "t of 2 dof"
    assert point.high - point.mean == pytest.approx(point.mean - point.low)


def test_one_seed_has_no_interval() -> None:
    (result,) = curves([summary("vtab/dtd", 0.1, [0.5])])
    assert result.points == (Point(size=100.0, mean=0.5),)
    (result,) = curves([summary("vtab/dtd", 0.1, {0: 0.5, 1: 0.6}), summary("vtab/svhn", 0.1, {1: 0.8, 2: 0.7})])
    assert result.points[0].mean == pytest.approx(0.65), "as in the table: of each task the mean over its seeds"
    assert result.points[0].low is None, "one seed only was scored on both tasks"


def test_an_interval_stays_within_0_and_1() -> None:
    (result,) = curves([summary("vtab/dtd", 0.1, [0.9, 1.0])])
    assert result.points[0].low == pytest.approx(0.95 - 12.7062 * 0.05, abs=1e-4)
    assert result.points[0].high == 1.0


def test_a_task_that_lacks_a_size_is_left_out_everywhere_and_named() -> None:
    complete = [
        summary("vtab/dtd", size, [score], images=images) for size, images, score in ((0.1, 80, 0.4), (1.0, 800, 0.6))
    ]
    (result,) = curves(
        [
            *complete,
            summary("vtab/svhn", 0.1, [0.9]),
            summary("vtab/svhn", 1.0, {0: None}),
            summary("vtab/kitti", 0.1, [0.9], images=None),
            summary("vtab/kitti", 1.0, [0.9]),
        ]
    )
    assert [point.mean for point in result.points] == [0.4, 0.6]
    assert result.tasks == ("vtab/dtd",)
    assert result.left_out == ("vtab/svhn", "vtab/kitti")
    (none,) = curves([summary("vtab/dtd", 0.1, [0.5]), summary("vtab/dtd", 1.0, {}), summary("vtab/svhn", 1.0, [0.5])])
    assert (none.points, none.tasks, none.left_out) == ((), (), ("vtab/dtd", "vtab/svhn"))


def test_a_size_without_any_score_is_omitted() -> None:
    (result,) = curves(
        [summary("vtab/dtd", 0.1, [0.5]), summary("vtab/dtd", 1.0, {}), summary("vtab/dtd", 0.5, {0: None})]
    )
    assert (len(result.points), result.left_out) == (1, ())
    assert curves([summary("vtab/dtd", 0.1, {})]) == [], "nor is a method without a score"


def test_each_method_and_backbone_has_a_curve_sorted_by_number_of_images() -> None:
    sizes: list[tuple[float | int | str, float]] = [(1.0, 800.0), ("5 per class", 50.0), (200, 200.0)]
    summaries = [
        summary("demo/digits", size, [0.5], images=images, method=method, backbone=backbone)
        for size, images in sizes
        for method in ("spt_deep", "linear")
        for backbone in (BUNDLED, ELSEWHERE)
    ]
    result = curves(summaries)
    assert [each.label for each in result] == [
        f"{method} {backbone}" for method in ("spt_deep", "linear") for backbone in (BUNDLED, ELSEWHERE)
    ]
    assert all([point.size for point in each.points] == [50.0, 200.0, 800.0] for each in result)
    assert [each.label for each in curves([s for s in summaries if s.plan.backbone == BUNDLED])] == [
        "spt_deep",
        "linear",
    ]


def test_between_two_sizes_accuracy_is_linear_in_the_logarithm() -> None:
    result = curve((100, 0.4), (400, 0.6), (1600, 0.7))
    assert size_to_reach(result, 0.5) == pytest.approx(200)
    assert size_to_reach(result, 0.6) == pytest.approx(400)
    assert size_to_reach(result, 0.65) == pytest.approx(800)
    goals = [0.4 + 0.3 * step / 50 for step in range(51)]
    needed = [size_to_reach(result, goal - 1e-12) for goal in goals]
    assert all(first is not None and second is not None and first <= second for first, second in pairwise(needed))


def test_nothing_is_extrapolated() -> None:
    result = curve((100, 0.4), (400, 0.6))
    assert size_to_reach(result, 0.6001) is None
    assert size_to_reach(result, 0.1) == 100, "fewer may do, but fewer were not measured"
    assert size_to_reach(curve(), 0.5) is None


def test_a_falling_curve_counts_where_it_first_reaches_the_accuracy() -> None:
    assert size_to_reach(curve((100, 0.4), (400, 0.6), (900, 0.5), (1600, 0.7)), 0.55) == pytest.approx(100 * 4**0.75)


def test_a_known_law_is_recovered_exactly_without_noise() -> None:
    sizes = [50, 100, 200, 400, 800, 1600]
    law = fit_power_law(law_points(1.9, 0.45, 0.05, sizes))
    assert law is not None
    assert (law.a, law.b, law.c) == pytest.approx((1.9, 0.45, 0.05), rel=1e-3)
    held = fit_power_law(law_points(1.9, 0.45, 0.0, sizes))
    assert held is not None
    assert (held.a, held.b, held.c) == pytest.approx((1.9, 0.45, 0.0), rel=1e-3, abs=1e-4)
    assert [held.error(n) for n in sizes] == pytest.approx([1.9 * n**-0.45 for n in sizes], rel=1e-3)


@pytest.mark.parametrize(("a", "b", "c"), [(1.9, 0.31, 0.05), (1.0, 0.2, 0.0), (3.0, 0.6, 0.2)])
def test_the_standard_errors_cover_a_known_law_behind_noise(a: float, b: float, c: float) -> None:
    sizes = [20, 50, 100, 200, 400, 800, 1600, 5000]
    inside, laws = 0, 60
    for seed in range(laws):
        law = fit_power_law(law_points(a, b, c, sizes, noise=0.004, seed=seed, error=0.004))
        assert law is not None
        assert law.c >= 0
        assert [law.error(n) for n in sizes] == pytest.approx([a * n**-b + c for n in sizes], abs=0.02)
        inside += abs(law.b - b) <= 2 * law.b_error
    assert inside >= 0.8 * laws, "nominally 95 %; a floor held at 0 narrows the errors"


def test_three_sizes_have_no_floor_and_two_no_law() -> None:
    three = fit_power_law(law_points(1.5, 0.4, 0.1, [100, 300, 900]))
    assert three is not None
    assert (three.c, three.c_error) == (0.0, None)
    assert fit_power_law(law_points(1.5, 0.4, 0.1, [100, 900])) is None
    assert fit_power_law(law_points(1.5, 0.4, 0.1, [100, 100, 900, 900])) is None, "two sizes, however many points"
    assert fit_power_law([]) is None


def test_a_point_with_a_smaller_error_weighs_more() -> None:
    points = law_points(1.5, 0.4, 0.0, [100, 300, 900])
    off = dataclasses.replace(points[1], mean=points[1].mean - 0.05)

    def miss(error: float) -> float:
        weighed = [dataclasses.replace(point, error=0.002) for point in points]
        weighed[1] = dataclasses.replace(off, error=error)
        law = fit_power_law(weighed)
        assert law is not None
        return abs(1 - law.error(300) - off.mean)

    assert miss(0.001) < miss(0.02)


@pytest.mark.parametrize(
    "means", [[0.5] * 5, [1.0] * 5, [0.0] * 4, [0.9, 0.8, 0.7, 0.6], [0.2, 0.9, 0.1, 0.8], [0.5, 0.7, 1.0]]
)
def test_awkward_curves_have_a_finite_law(means: list[float]) -> None:
    law = fit_power_law([Point(size=100.0 * 2**i, mean=mean, error=0.0) for i, mean in enumerate(means)])
    assert law is not None
    assert all(math.isfinite(value) for value in (law.a, law.b, law.c, law.a_error, law.b_error))
    assert law.c >= 0
    if means == sorted(means):
        errors = [law.error(n) for n in (50, 100, 500, 5000)]
        assert all(first >= second - 1e-9 for first, second in pairwise(errors)), "more images do no harm"


def test_random_curves_have_a_finite_law() -> None:
    draw = random.Random(1)
    for _ in range(200):
        sizes = sorted(draw.uniform(10, 20_000) for _ in range(draw.randint(3, 7)))
        means = [draw.choice([draw.random(), 0.0, 1.0]) for _ in sizes]
        law = fit_power_law([Point(size=n, mean=mean) for n, mean in zip(sizes, means, strict=True)])
        assert law is not None
        assert all(math.isfinite(value) for value in (law.a, law.b, law.c, law.a_error, law.b_error))
        assert all(math.isfinite(law.error(n)) for n in sizes)


def test_a_law_is_printed_as_its_formula() -> None:
    law = PowerLaw(a=1.9, b=0.31, c=0.05, a_error=0.2, b_error=0.04, c_error=0.01)
    assert str(law) == "error = 1.9 n^-0.31 (±0.04) + 0.05"
    assert str(dataclasses.replace(law, c=0.0, c_error=None)) == "error = 1.9 n^-0.31 (±0.04)"
    assert str(dataclasses.replace(law, a=0.5, b=-0.0004, c=0.0, c_error=None)) == "error = 0.5 n^0.00 (±0.04)"


def test_a_row_says_how_many_images_reach_the_accuracy_of_the_other() -> None:
    ours = curve((100, 0.70), (1000, 0.80))
    theirs = curve((100, 0.60), (1000, 0.743), label="linear")
    first, second = efficiency_table([ours, theirs])
    needed = 100 * 10**0.43
    assert first.size == pytest.approx(needed)
    assert str(first) == f"spt_deep reaches linear's 74.3 % with {needed:.0f} images; linear needs 1,000"
    assert second.size is None
    assert str(second) == "linear does not reach spt_deep's 80.0 % with 1,000 images"
    (easy, _) = efficiency_table([curve((100, 0.8), (1000, 0.9)), theirs])
    assert str(easy) == "spt_deep reaches linear's 74.3 % with at most 100 images; linear needs 1,000"


def test_averages_over_different_tasks_or_backbones_are_not_compared() -> None:
    ours, theirs = curve((100, 0.7)), curve((100, 0.6), label="linear", tasks=("a", "b"))
    rows = efficiency_table([ours, theirs, dataclasses.replace(theirs, backbone=ELSEWHERE), curve(label="full")])
    assert [row.same_tasks for row in rows] == [False, False], "and one without points is compared with nothing"
    assert rows[0].size is None
    assert str(rows[0]) == "spt_deep and linear are not compared: they have scores on different tasks"


def test_importing_the_module_needs_no_torch_scipy_or_optuna() -> None:
    forbidden = "{'torch', 'scipy', 'optuna'}"
    code = f"import sys, orchestrator.report.data_efficiency; sys.exit(bool({forbidden} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
