"""Which trials val cannot tell apart, and which methods differ: against scipy, by hand, and at the edges."""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from scipy import stats

from orchestrator.report.comparison import compare_methods, comparison_text, min_tasks
from orchestrator.study.selection import find_tied, pack_correct, rank_by_val, select_best, simplest, unpack_correct
from orchestrator.study.statistics import holm
from orchestrator.study.trial import FailureCause, Trial, TrialState
from trainer.config import TrainConfig

IMAGES = 200
METHODS = ("spt_deep", "vpt_deep", "linear")


def right(count: int, *, of: int = IMAGES, first: int = 0) -> list[bool]:
    """`count` images classified right, from one of them on."""
    return [first <= place < first + count for place in range(of)]


def trial(
    number: int,
    correct: Sequence[bool] | None = None,
    *,
    state: TrialState = TrialState.COMPLETE,
    score: float | None = None,
    parameters: int | None = None,
    duplicate_of: int | None = None,
    scored_on: str | None = None,
) -> Trial:
    """A search trial that got these images right."""
    if score is None and state is TrialState.COMPLETE:
        score = sum(correct or ()) / len(correct or (1,))
    failed = state is TrialState.FAILED
    return Trial(
        trial_id=f"trial-{number if duplicate_of is None else duplicate_of}",
        study="a study",
        phase="search",
        number=number,
        params={},
        config=TrainConfig(task="demo/digits", method="linear"),
        state=state,
        last_metrics={} if parameters is None else {"learnable/parameters": float(parameters)},
        provenance=({} if correct is None else {"correct": pack_correct(correct)})
        | ({} if scored_on is None else {"scored_on": scored_on}),
        score=score,
        error="it failed" if failed else None,
        cause=FailureCause.ERROR if failed else None,
        duplicate_of=duplicate_of,
    )


def flipped(correct: Sequence[bool], lost: int, won: int = 0) -> list[bool]:
    """The same images right, but for the first `lost` of them, and `won` of the others."""
    mine = [place for place, is_right in enumerate(correct) if is_right][:lost]
    theirs = [place for place, is_right in enumerate(correct) if not is_right][:won]
    return [is_right != (place in mine or place in theirs) for place, is_right in enumerate(correct)]


def numbers(trials: Sequence[Trial]) -> list[int]:
    return [each.number for each in trials]


# Images


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 200, 2393])
def test_images_come_back_as_they_were_packed(count: int) -> None:
    drawn = random.Random(count)
    for correct in ([False] * count, [True] * count, [drawn.random() < 0.7 for _ in range(count)]):
        packed = pack_correct(correct)
        assert unpack_correct(packed).tolist() == correct
        assert unpack_correct(packed).dtype == np.bool_, "so that ~ negates and does not subtract"
        array = np.asarray(correct, dtype=bool)
        assert pack_correct(array) == packed, "as a worker has it from Parquet"
        assert packed.isascii() and len(packed) < 16 + count / 5, "it is an attribute of each search trial"


# Holm


@pytest.mark.parametrize(
    ("raw", "by_hand"),
    [
        ([], []),
        ([0.03], [0.03]),
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),  # 3 x 0.01; then 2 x 0.03; then 1 x 0.04, not below the one before
        ([0.04, 0.03, 0.01], [0.06, 0.06, 0.03]),  # in the order in which they were given
        ([0.02, 0.02], [0.04, 0.04]),
        ([0.9, 0.8], [1.0, 1.0]),
        ([0.0, 1.0], [0.0, 1.0]),
        ([0.005, 0.011, 0.02, 0.04, 0.13], [0.025, 0.044, 0.06, 0.08, 0.13]),
    ],
)
def test_holm_is_what_a_hand_computes(raw: list[float], by_hand: list[float]) -> None:
    assert holm(raw) == pytest.approx(by_hand)


def test_holm_keeps_the_order_and_never_makes_a_p_smaller_or_more_than_1() -> None:
    drawn = random.Random(3)
    for count in (1, 2, 3, 10, 300):
        raw = [drawn.choice([drawn.random(), 0.0, 1.0, 0.05, drawn.random() / 100]) for _ in range(count)]
        adjusted = holm(raw)
        assert all(p <= q <= 1.0 for p, q in zip(raw, adjusted, strict=True))
        assert all(q <= min(1.0, count * p) for p, q in zip(raw, adjusted, strict=True)), "never above Bonferroni's"
        by_raw = [q for _, q in sorted(zip(raw, adjusted, strict=True))]
        assert by_raw == sorted(by_raw)
        order = [*range(count)]
        drawn.shuffle(order)
        assert holm([raw[place] for place in order]) == [adjusted[place] for place in order], "of any order the same"


# Tied


@pytest.mark.parametrize("seed", range(20))
def test_the_best_is_tied_and_first_and_the_others_follow_by_val(seed: int) -> None:
    drawn = random.Random(seed)
    share = drawn.choice([0.1, 0.5, 0.9, 1.0])
    trials = [trial(number, [drawn.random() < share for _ in range(IMAGES)]) for number in range(12)]
    found = find_tied(trials)
    best = max(trials, key=lambda each: (each.score or 0.0, -each.number))
    assert found[0] is best
    assert found == [each for each in rank_by_val(trials) if each in found]
    assert find_tied(trials[::-1]) == found, "the order in which they come changes nothing"
    assert {*numbers(find_tied(trials, level=0.5))} <= {*numbers(found)} <= {*numbers(find_tied(trials, level=1e-9))}


def test_a_trial_that_is_wrong_on_the_same_images_is_tied() -> None:
    assert numbers(find_tied([trial(0, right(150)), trial(1, right(150)), trial(2, right(150))])) == [0, 1, 2]


def test_of_trials_that_got_nothing_or_everything_right_all_are_tied() -> None:
    for count in (0, IMAGES):
        assert numbers(find_tied([trial(number, right(count)) for number in range(4)])) == [0, 1, 2, 3]


def test_a_trial_that_is_clearly_worse_is_not_tied() -> None:
    best = right(180)
    assert numbers(find_tied([trial(0, flipped(best, 60)), trial(1, best), trial(2, flipped(best, 2, 1))])) == [1, 2]


def test_as_many_right_on_other_images_is_tied() -> None:
    """The same accuracy with hardly an image in common: each is better where the other is not."""
    assert numbers(find_tied([trial(0, right(100)), trial(1, right(100, first=100))])) == [0, 1]


def test_a_p_of_3_percent_alone_tells_two_apart_and_among_20_candidates_does_not() -> None:
    best = right(150)
    rival = flipped(best, 10, 2)
    assert 0.03 < stats.binomtest(2, 12, 0.5).pvalue < 0.05
    assert numbers(find_tied([trial(0, best), trial(1, rival)])) == [0]

    # Candidates that differ from the best on as many images of their own. The last 50 images are wrong for the best.
    drawn = random.Random(1)
    crowd = []
    for number in range(2, 21):
        changed = {*drawn.sample(range(150), 8), *drawn.sample(range(150, IMAGES), 6)}
        crowd.append(trial(number, [is_right != (place in changed) for place, is_right in enumerate(best)]))
    assert 1 in numbers(find_tied([trial(0, best), trial(1, rival), *crowd]))


def test_copies_of_the_best_are_no_rivals() -> None:
    """Trials with the same predictions are one candidate: they make no other trial look better."""
    best = right(150)
    rival = flipped(best, 10, 2)
    crowd = [trial(number, best) for number in range(2, 21)]
    assert 1 not in numbers(find_tied([trial(0, best), trial(1, rival), *crowd]))


def test_only_complete_trials_whose_images_are_known_are_tied_each_config_once() -> None:
    best = right(150)
    others = [
        trial(1, best, state=TrialState.FAILED),
        trial(2, best, state=TrialState.PRUNED),
        trial(3, best, state=TrialState.RUNNING),
        trial(4, best, state=TrialState.WAITING),
        trial(5, best, duplicate_of=0),
        trial(6, None, score=0.75),
    ]
    assert numbers(find_tied([trial(0, best), *others])) == [0]
    assert numbers(find_tied(others)) == [6], "the best of them, of which nothing more is known"
    assert find_tied([*others[:4]]) == []
    assert find_tied([]) == []


def test_where_it_is_not_known_what_the_best_got_right_it_is_alone() -> None:
    assert numbers(find_tied([trial(0, right(100)), trial(1, None, score=0.9), trial(2, right(150))])) == [1]


def test_trials_that_do_not_count_do_not_make_the_correction_larger() -> None:
    best = right(150)
    rival = trial(1, flipped(best, 10, 2))
    drawn = random.Random(1)
    others = [[drawn.random() < 0.74 for _ in range(IMAGES)] for _ in range(58)]
    crowd = [trial(number, others[number - 2], duplicate_of=0) for number in range(2, 30)]
    crowd += [trial(number, others[number - 2], state=TrialState.PRUNED) for number in range(30, 60)]
    assert 1 not in numbers(find_tied([trial(0, best), rival, *crowd]))


# Chosen


def test_last_val_takes_the_best_and_of_equals_the_earliest() -> None:
    trials = [trial(0, right(100)), trial(1, right(150)), trial(2, right(150)), trial(3, None, score=0.1)]
    picked = select_best(trials, "last_val")
    assert picked is trials[1]
    assert select_best(trials[::-1], "last_val") is picked


def test_last_val_needs_no_images() -> None:
    assert select_best([trial(0, None, score=0.3), trial(1, None, score=0.4)], "last_val") == trial(1, None, score=0.4)


def test_simplest_tied_takes_the_smallest_of_those_that_val_cannot_tell_from_the_best() -> None:
    best = right(180)
    trials = [
        trial(0, best, parameters=9000),
        trial(1, flipped(best, 3, 1), parameters=700),
        trial(2, flipped(best, 2, 1), parameters=700),
        trial(3, flipped(best, 70), parameters=10),
        trial(4, None, score=0.5, parameters=1),
    ]
    assert select_best(trials, "simplest_tied") is trials[2], "of equals the one of the higher val accuracy"
    assert select_best(trials, "last_val") is trials[0]
    assert simplest([trial(5, best, parameters=10), trial(3, best, parameters=10)]).number == 3, "then the earliest"


@pytest.mark.parametrize("select", ["last_val", "simplest_tied"])
def test_nothing_is_chosen_of_nothing(select: str) -> None:
    broken = [trial(0, None, state=TrialState.FAILED), trial(1, right(3), state=TrialState.PRUNED)]
    for trials in ([], broken):
        assert select_best(trials, select) is None  # type: ignore[arg-type]


# Compared


def drawn_scores(tasks: int, seeds: Sequence[int], source: int) -> dict[tuple[str, int], float]:
    drawn = random.Random(source)
    return {(f"task {task}", seed): drawn.random() for task in range(tasks) for seed in seeds}


def by_task(one: Mapping[tuple[str, int], float], other: Mapping[tuple[str, int], float]) -> list[float]:
    tasks = sorted({task for task, _ in one.keys() & other.keys()})
    both = one.keys() & other.keys()
    return [statistics.mean(one[key] - other[key] for key in both if key[0] == task) for task in tasks]


@pytest.mark.parametrize("tasks", [6, 7, 19])
@pytest.mark.parametrize("seeds", [(42, 44), (42, 44, 82, 100, 800)])
def test_the_p_values_of_two_methods_are_those_of_scipy(tasks: int, seeds: tuple[int, ...]) -> None:
    one, other = drawn_scores(tasks, seeds, 1), drawn_scores(tasks, seeds, 2)
    (found,) = compare_methods({"spt_deep": one, "vpt_deep": other})
    differences = by_task(one, other)
    over_seeds = [statistics.mean(one[f"task {t}", s] - other[f"task {t}", s] for t in range(tasks)) for s in seeds]
    assert found.p_tasks == pytest.approx(stats.wilcoxon(differences).pvalue)
    assert found.p_seeds == pytest.approx(stats.ttest_1samp(over_seeds, 0.0).pvalue)
    assert found.difference == pytest.approx(statistics.mean(differences), abs=1e-12)
    assert found.better_on == sum(difference > 0 for difference in differences)
    assert (found.one, found.other, found.tasks, found.seeds) == ("spt_deep", "vpt_deep", tasks, len(seeds))


def test_three_pairs_are_corrected_for_being_three() -> None:
    methods = {name: drawn_scores(8, (1, 2, 3), place) for place, name in enumerate(METHODS)}
    found = compare_methods(methods)
    assert [(each.one, each.other) for each in found] == [*itertools.combinations(METHODS, 2)]
    alone = [compare_methods({name: methods[name] for name in (each.one, each.other)})[0] for each in found]
    for corrected, raw in (
        ([each.p_tasks for each in found], [each.p_tasks for each in alone]),
        ([each.p_seeds for each in found], [each.p_seeds for each in alone]),
    ):
        assert corrected == pytest.approx(holm([p for p in raw if p is not None]))


def test_a_pair_without_a_p_is_not_counted_in_the_correction() -> None:
    whole, other = drawn_scores(6, (1, 2), 1), drawn_scores(6, (1, 2), 2)
    short = {key: value for key, value in drawn_scores(6, (1, 2), 3).items() if key[0] == "task 0"}
    pair, *with_short = compare_methods({"spt_deep": whole, "vpt_deep": other, "linear": short})
    assert pair.p_tasks == compare_methods({"spt_deep": whole, "vpt_deep": other})[0].p_tasks
    assert [each.p_tasks for each in with_short] == [None, None]
    assert all(each.p_seeds is not None for each in (pair, *with_short)), "two seeds are enough, on one task too"


@pytest.mark.parametrize("tasks", range(1, 9))
def test_nothing_is_said_of_other_tasks_with_fewer_than_six(tasks: int) -> None:
    (found,) = compare_methods({"one": drawn_scores(tasks, (1, 2), 1), "other": drawn_scores(tasks, (1, 2), 2)})
    assert found.tasks_needed == min_tasks(1) == 6
    assert (found.p_tasks is None) == (tasks < found.tasks_needed)
    least = stats.wilcoxon([1.0 + place for place in range(tasks)]).pvalue
    assert (least < 0.05) == (tasks >= found.tasks_needed), "with fewer even a win on all of them is no evidence"


@pytest.mark.parametrize("num_methods", [2, 3, 4, 6])
def test_the_number_of_tasks_that_is_needed_is_the_smallest_with_which_a_win_on_all_is_significant(
    num_methods: int,
) -> None:
    num_pairs = num_methods * (num_methods - 1) // 2
    for tasks, is_enough in ((min_tasks(num_pairs) - 1, False), (min_tasks(num_pairs), True)):
        # Method i is better than method i - 1 on every task, by another amount on each.
        methods = {
            f"method {index}": {(f"task {task}", 1): index * (0.01 + task / 1000) for task in range(tasks)}
            for index in range(num_methods)
        }
        found = compare_methods(methods)
        p_values = [pair.p_tasks for pair in found if pair.p_tasks is not None]
        assert (min(p_values, default=1.0) < 0.05) is is_enough
        assert {pair.tasks_needed for pair in found} == {min_tasks(num_pairs)}
        assert any("it cannot be below 5 %" in line for line in comparison_text(found, {"seeds"})) is not is_enough


def test_five_tasks_are_never_enough_and_the_text_says_how_many_are() -> None:
    methods = {name: drawn_scores(5, (1, 2), place) for place, name in enumerate(METHODS)}
    assert [*comparison_text(compare_methods(methods), {"seeds"})][-1] == (
        "p over tasks of 3 pairs of methods needs 7 tasks: with 5 tasks it cannot be below 5 %, even if one method "
        "wins on all of them."
    )
    two = {name: methods[name] for name in METHODS[:2]}
    assert (
        "p over tasks of 1 pair of methods needs 6 tasks: with 5 tasks"
        in [*comparison_text(compare_methods(two), {"seeds"})][-1]
    )


def test_a_lucky_search_deceives_the_test_over_seeds_and_not_that_over_tasks() -> None:
    """Two equal methods. A search and a seed each move a score by 0.5 points. The report states the 32 %."""
    rng = np.random.default_rng(1)
    repeats, num_seeds = 1000, 5

    def called_different(num_tasks: int) -> tuple[float, float]:
        over_tasks = over_seeds = 0
        for _ in range(repeats):
            luck = rng.normal(0.0, 0.005, (2, num_tasks, 1)) + rng.normal(0.0, 0.005, (2, num_tasks, num_seeds))
            one, other = (
                {(f"task {t}", s): 0.7 + float(scores[t, s]) for t in range(num_tasks) for s in range(num_seeds)}
                for scores in luck
            )
            (pair,) = compare_methods({"one": one, "other": other})
            over_seeds += pair.p_seeds is not None and pair.p_seeds < 0.05
            over_tasks += pair.p_tasks is not None and pair.p_tasks < 0.05
        return over_tasks / repeats, over_seeds / repeats

    over_tasks, over_seeds = called_different(7)
    # Within 3 standard errors of what the text says, and of the level.
    assert over_seeds == pytest.approx(0.32, abs=3 * (0.32 * 0.68 / repeats) ** 0.5)
    assert over_tasks <= 0.05 + 3 * (0.05 * 0.95 / repeats) ** 0.5


def test_nothing_is_said_of_other_seeds_with_one() -> None:
    (found,) = compare_methods({"one": drawn_scores(7, (42,), 1), "other": drawn_scores(7, (42,), 2)})
    assert (found.seeds, found.p_seeds) == (1, None)
    assert found.p_tasks is not None


def test_only_tasks_and_seeds_that_both_have_count() -> None:
    one, other = drawn_scores(7, (1, 2, 3), 1), drawn_scores(7, (1, 2, 3), 2)
    more = one | {("only here", 1): 1.0, ("task 0", 9): 1.0, ("task 1", 9): 0.0}
    fewer = other | {("only there", 1): 0.0}
    assert compare_methods({"one": more, "other": fewer}) == compare_methods({"one": one, "other": other})
    del fewer["task 3", 2]
    (found,) = compare_methods({"one": more, "other": fewer})
    assert (found.tasks, found.seeds) == (7, 2), "seeds that both have on every task"
    assert found.difference == pytest.approx(statistics.mean(by_task(more, fewer))), "a task's own seeds all count"
    for seed in (1, 3):
        del fewer[f"task {seed}", seed]
    (found,) = compare_methods({"one": more, "other": fewer})
    assert (found.tasks, found.seeds, found.p_seeds) == (7, 0, None)


def test_methods_without_a_task_in_common_are_not_compared() -> None:
    assert compare_methods({"one": {("a", 1): 0.5}, "other": {("b", 1): 0.5}, "none": {}}) == []
    assert compare_methods({"one": {("a", 1): 0.5}, "other": {("a", 2): 0.5}}) == [], "nor without a seed"
    assert compare_methods({"one": {("a", 1): 0.5}}) == compare_methods({}) == []


@pytest.mark.parametrize("seed", range(5))
def test_the_other_way_round_it_is_the_same_with_the_other_sign(seed: int) -> None:
    one, other = drawn_scores(9, (1, 2, 3), seed), drawn_scores(9, (1, 2, 3), seed + 100)
    (there,), (back,) = compare_methods({"one": one, "other": other}), compare_methods({"other": other, "one": one})
    assert (back.one, back.other) == (there.other, there.one)
    assert back.difference == pytest.approx(-there.difference, abs=1e-15)
    assert back.better_on == there.tasks - there.better_on
    assert (back.p_tasks, back.p_seeds) == pytest.approx((there.p_tasks, there.p_seeds))


def test_a_method_does_not_differ_from_itself() -> None:
    scores = drawn_scores(8, (1, 2), 1)
    (found,) = compare_methods({"one": scores, "other": dict(scores)})
    assert (found.difference, found.better_on, found.p_tasks, found.p_seeds) == (0.0, 0, 1.0, 1.0)


def test_a_difference_that_is_the_same_with_every_seed_tells_nothing_of_how_seeds_vary() -> None:
    scores = {(f"task {task}", seed): 0.25 for task in range(6) for seed in (1, 2)}
    (found,) = compare_methods({"one": {key: value + 0.5 for key, value in scores.items()}, "other": scores})
    assert (found.difference, found.better_on, found.p_seeds) == (0.5, 6, None)
    assert found.p_tasks == pytest.approx(2 / 2**6)


def test_the_last_bits_of_a_sum_are_no_difference() -> None:
    one = {("x", 1): 0.1 + 0.2, ("x", 2): 0.1 + 0.2, ("y", 1): 0.5, ("y", 2): 0.5}
    other = {("x", 1): 0.3, ("x", 2): 0.3, ("y", 1): 0.5, ("y", 2): 0.5}
    (found,) = compare_methods({"one": one, "other": other})
    assert (found.difference, found.better_on, found.p_seeds) == (0.0, 0, 1.0)


def test_trials_that_were_scored_on_other_images_are_never_tied() -> None:
    right = [True] * 30 + [False] * 10
    same, longer, shorter = (
        trial(number, [*right, *more], scored_on=f"{images}/val/1.0/spt")
        for number, (more, images) in enumerate([([], "a"), ([True] * 5, "b"), ([], "c")])
    )
    cropped = trial(3, right, scored_on="a/val/1.0/vpt")
    assert find_tied([same, longer, shorter, cropped]) == [longer], "the best of all is among its like alone"
    assert find_tied([same, shorter, cropped]) == [same, cropped]


def test_equal_tasks_among_unequal_ones_are_no_obstacle() -> None:
    """A task on which both are at 100 %: scipy warned of zeros once, and a warning here is an error."""
    one, other = drawn_scores(8, (1,), 1), drawn_scores(8, (1,), 2)
    other["task 0", 1] = one["task 0", 1]
    (found,) = compare_methods({"one": one, "other": other})
    assert found.p_tasks is not None and math.isfinite(found.p_tasks)
    assert found.p_tasks == pytest.approx(stats.wilcoxon(by_task(one, other)).pvalue)
