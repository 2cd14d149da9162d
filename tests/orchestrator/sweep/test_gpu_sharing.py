"""Who shares a GPU: as many trials as are measured to be faster together, where MPS runs, and nobody anywhere else."""

from __future__ import annotations

import dataclasses
import functools
import heapq
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from orchestrator.drivers.replay import Clock
from orchestrator.spec.loader import parse_spec
from orchestrator.spec.resources import ResourceOverride, Resources
from orchestrator.study.storage.database import StudyDatabase
from orchestrator.study.trial import Failure, FailureCause, Trial, TrialState
from orchestrator.sweep.gpu_occupancy import REPORT_DELAY_S, GpuOccupancy
from orchestrator.sweep.gpu_sharing import GpuAllocator, trials_per_gpu
from orchestrator.sweep.shared_speed import NUM_EPOCHS, NUM_TRIALS, SharedSpeed
from orchestrator.sweep.sweep import Sweep
from orchestrator.sweep.tracker import MemoryTracker
from tests.orchestrator.conftest import curve
from trainer.config import TrainConfig

NANO = "vit_nano_patch4_32.mae"
AUTO = Resources(gpus="auto")
HERE = {"gpu": "GPU 0 of node7", "device": "NVIDIA H200", "mps": "yes"}
"""Facts of an epoch."""


@functools.cache
def config_of(method: str, backbone: str) -> TrainConfig:
    return TrainConfig(task="demo/digits", method=method, backbone=backbone)


def trial_of(name: str = "a", method: str = "linear", backbone: str = NANO, factor: int = 1) -> Trial:
    return Trial(
        study="a study",
        phase="search",
        number=0,
        trial_id=name,
        params={},
        config=config_of(method, backbone),
        state=TrialState.RUNNING,
        gpu_share_factor=factor,
    )


class Machine:
    """GPUs whose trials run as Ray would have it, on a virtual clock.

    Args:
        totals: images per second of one GPU with 1, 2, ... trials. More are as fast as the last.
        used: part of a GPU's memory that each trial uses.
        noise: width of the noise of a measurement. One epoch of ten takes ten times as long, if there is any noise.
    """

    def __init__(
        self,
        allocator: GpuAllocator,
        totals: Sequence[float],
        *,
        num_gpus: int = 2,
        used: float = 0.1,
        noise: float = 0.0,
        seed: int = 0,
        mps: Callable[[int], str] = lambda _: "yes",
    ) -> None:
        self.allocator = allocator
        self.totals = totals
        self.used = used
        self.noise = noise
        self.mps = mps
        self.random = random.Random(seed)
        self.gpus: list[dict[str, float]] = [{} for _ in range(num_gpus)]
        self.trials: list[Trial] = []
        self.now = 0.0
        self.gpu_seconds = 0.0
        """Seconds of trials times their shares."""
        allocator.num_gpus = num_gpus

    def run(self, num_trials: int, at_once: int = 99, num_epochs: int = 8) -> list[float]:
        """Return the share of each trial, in their order."""
        waiting: list[Trial] = []
        shares: list[float] = []
        events: list[tuple[float, int, int]] = []
        first = len(self.trials)
        while len(shares) < num_trials or waiting or events:
            # One trial is ahead of the workers.
            if not waiting and len(shares) < num_trials and len(events) < at_once:
                trial = trial_of(f"trial {first + len(shares)}")
                self.allocator.assign(trial)
                shares.append(self.allocator.gpus_for(trial))
                self.trials.append(trial)
                waiting.append(trial)
            if waiting and self._place(waiting[0].trial_id, shares[-1]):
                waiting.pop()
                # It needs time before its first epoch.
                heapq.heappush(events, (self.now + 3 + self.random.random(), len(self.trials) - 1, 0))
                continue

            self.now, index, epoch = heapq.heappop(events)
            if epoch:
                self._report(index)
            if epoch < num_epochs:
                heapq.heappush(events, (self.now + self._speed(index)[1], index, epoch + 1))
            else:
                self.allocator.release(self.trials[index].trial_id, self.now)
                self._gpu_of(index).pop(self.trials[index].trial_id)
        return shares

    def _place(self, trial_id: str, share: float) -> bool:
        # Ray fills a GPU before it begins another.
        for gpu in sorted(self.gpus, key=lambda trials: -sum(trials.values())):
            if sum(gpu.values()) + share < 1.001:
                gpu[trial_id] = share
                return True
        return False

    def _gpu_of(self, index: int) -> dict[str, float]:
        return next(gpu for gpu in self.gpus if self.trials[index].trial_id in gpu)

    def _speed(self, index: int) -> tuple[float, float]:
        """Images per second of a trial now, and the seconds of an epoch, which takes four alone."""
        count = len(self._gpu_of(index))
        speed = self.totals[min(count, len(self.totals)) - 1] / count
        if self.noise:
            speed *= 1 + self.noise * (self.random.random() - 0.5)
            speed /= self.random.choice([1] * 9 + [10])
        return speed, 4 * self.totals[0] / speed

    def _report(self, index: int) -> None:
        gpu = self._gpu_of(index)
        number = next(number for number, trials in enumerate(self.gpus) if trials is gpu)
        speed, seconds = self._speed(index)
        self.gpu_seconds += seconds * gpu[self.trials[index].trial_id]
        metrics = {
            "train/images_per_s": speed,
            "epoch/seconds": seconds,
            "memory/peak_gb": 80 * self.used,
            "memory/device_gb": 80.0,
        }
        facts = {"gpu": f"GPU {number} of node7", "device": "NVIDIA H200", "mps": self.mps(number)}
        metrics = self.allocator.add_epoch(self.trials[index], metrics, facts, self.now)
        self.trials[index] = self.trials[index].with_epoch(metrics, facts)


TURNS = [100.0] * 8
TOTALS: dict[str, tuple[Sequence[float], float, int]] = {
    "take turns": (TURNS, 0.1, 1),
    "are slower together": ([100, 80, 300], 0.1, 1),
    "hardly faster": ([100, 102, 104, 106], 0.1, 1),
    "two are best": ([100, 160, 150, 500], 0.1, 2),
    "three are best": ([100, 180, 240, 245], 0.1, 3),
    "three fit": ([100, 200, 300, 400, 500], 0.3, 3),
    "one fits": ([100, 200, 300, 400, 500], 0.6, 1),
    "eight are enough": ([100.0 * number for number in range(1, 20)], 0.01, 8),
}


@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize("name", TOTALS)
def test_as_many_trials_share_a_gpu_as_are_faster_together_and_fit(name: str, noise: float) -> None:
    totals, used, best = TOTALS[name]
    for seed in range(3 if noise else 1):
        shares = Machine(GpuAllocator(AUTO), totals, used=used, noise=noise, seed=seed).run(40 + 10 * best)
        assert shares[:NUM_TRIALS] == [1.0] * NUM_TRIALS, "nothing like them was measured"
        assert shares[-10:] == pytest.approx([1 / best] * 10)
        # One number too many is tried, and no more: who takes turns at first does not share for long.
        assert min(shares) == pytest.approx(1 / min(best + 1, trials_per_gpu(used)))


@pytest.mark.parametrize(("mps", "node"), [("no", 0), ("no", 1), ("", 0)])
def test_no_trial_shares_a_gpu_while_a_node_is_without_mps(mps: str, node: int) -> None:
    allocator = GpuAllocator(AUTO)
    machine = Machine(allocator, [100, 200, 300], mps=lambda number: mps if number == node else "yes")
    assert machine.run(20)[2:] == [1.0] * 18
    expected = (
        f"GPU {node} of node7: MPS does not run there, so trials that share a GPU would take turns. With gpus: auto, "
        "each gets a whole GPU. docker/README.md says how to start its daemon."
    )
    # Once, whatever the number of epochs.
    assert [note for note in allocator.take_notes() if "MPS" in note] == ([expected] if mps else [])
    assert allocator.take_notes() == []


def test_what_decides_is_said() -> None:
    allocator = GpuAllocator(AUTO)
    Machine(allocator, [100, 160, 150]).run(40)
    trials = f"trials of linear on {NANO}"
    assert allocator.take_notes() == [
        f"gpus: auto tries 2 {trials} on a GPU.",
        f"gpus: auto tries 3 {trials} on a GPU.",
        f"gpus: auto puts 2 {trials} on a GPU: 3 are not faster together, or do not fit.",
    ]


def test_trials_share_no_gpu_while_another_would_be_idle() -> None:
    machine = Machine(GpuAllocator(AUTO), [100, 200, 300, 400], num_gpus=4)
    machine.run(60)
    # The cluster is free, and has been measured to be faster with four on a GPU.
    assert machine.run(8, at_once=3) == [1.0] * 8
    assert machine.run(40, at_once=7)[-10:] == [0.5] * 10


def test_a_fraction_in_the_spec_is_obeyed_and_said_to_take_turns_without_mps() -> None:
    allocator = GpuAllocator(Resources(gpus=0.25))
    assert Machine(allocator, TURNS, mps=lambda _: "no").run(20) == [0.25] * 20
    assert allocator.take_notes() == [
        "GPU 0 of node7: MPS does not run there, so trials with gpus: 0.25 take turns. docker/README.md says how to "
        "start its daemon."
    ]
    allocator = GpuAllocator(Resources(gpus=0.25))
    assert Machine(allocator, TURNS).run(20) == [0.25] * 20
    assert allocator.take_notes() == []
    for gpus in (0, 1, 2):
        allocator = GpuAllocator(Resources(gpus=gpus))
        allocator.add_epoch(trial_of(), {"epoch/seconds": 1.0}, {"gpu": "GPU 0,1 of node7", "mps": "no"}, 0.0)
        assert allocator.take_notes() == [], "whole GPUs are not shared"


@pytest.mark.parametrize("num_trials", [1, 2, 4, 9, 40])
def test_a_later_driver_has_learnt_the_same_from_the_stored_epochs(num_trials: int) -> None:
    machine = Machine(GpuAllocator(AUTO), [100, 180, 240, 245], noise=0.1)
    machine.run(num_trials)
    later = GpuAllocator(AUTO)
    hours = later.restore(machine.trials)
    assert hours == pytest.approx(machine.gpu_seconds / 3600), "shares are those that the trials had"
    assert later.gpus_for(trial_of()) == 1.0, "whether MPS still runs is not known before the first epoch"
    for allocator in (machine.allocator, later):
        allocator.add_epoch(trial_of("b", method="full"), {}, HERE, 1e9)
    assert later.gpus_for(trial_of()) == machine.allocator.gpus_for(trial_of())
    assert later.smallest_resources(NANO) == machine.allocator.smallest_resources(NANO)


def test_trials_that_took_turns_say_nothing_of_those_that_do_not() -> None:
    machine = Machine(GpuAllocator(Resources(gpus=0.5)), TURNS, mps=lambda _: "no")
    machine.run(20)
    assert any(epoch.get("gpu/trials") == 2 for trial in machine.trials for epoch in trial.epochs)
    alone = Machine(GpuAllocator(AUTO), [100.0], num_gpus=1)
    alone.run(NUM_TRIALS)
    later = GpuAllocator(AUTO)
    later.restore([*machine.trials, *alone.trials])
    later.add_epoch(trial_of(), {}, HERE, 0.0)
    assert later.gpus_for(trial_of()) == 0.5, "two are to be measured now"


def test_kinds_of_gpus_of_earlier_drivers_do_not_count() -> None:
    machine = Machine(GpuAllocator(AUTO), [100, 190, 190])
    machine.run(60)
    # One trial ran on another kind, and one on both.
    for device in ("NVIDIA T4", "NVIDIA T4; NVIDIA H200"):
        epochs = ({"gpu/trials": 1.0, "train/images_per_s": 10.0},)
        machine.trials.append(dataclasses.replace(trial_of(device), epochs=epochs, provenance={"device": device}))
    later = GpuAllocator(AUTO)
    later.restore(machine.trials)
    later.add_epoch(trial_of("b", method="full"), {}, HERE, 0.0)
    assert later.gpus_for(trial_of()) == 0.5
    later.add_epoch(trial_of("c", method="full"), {}, HERE | {"gpu": "GPU 0 of node8", "device": "NVIDIA T4"}, 0.0)
    assert later.gpus_for(trial_of()) == 1.0


def learnt(totals: Sequence[float], used: float = 0.1) -> GpuAllocator:
    allocator = GpuAllocator(AUTO)
    Machine(allocator, totals, used=used).run(120)
    return allocator


def test_what_was_learnt_holds_for_the_same_method_backbone_and_precision() -> None:
    allocator = learnt([100, 190, 190])
    assert allocator.gpus_for(trial_of()) == 0.5
    assert allocator.gpus_for(trial_of(method="full")) == 1.0
    assert allocator.gpus_for(trial_of(backbone="vit_tiny_patch16_224.augreg_in21k")) == 1.0
    bf16 = dataclasses.replace(trial_of().config, precision="bf16")
    assert allocator.gpus_for(dataclasses.replace(trial_of(), config=bf16)) == 1.0


def test_another_kind_of_gpu_is_measured_before_trials_share_it() -> None:
    allocator = learnt([100, 190, 190])
    allocator.assign(trial_of("on T4", factor=2))
    metrics = {"train/images_per_s": 10.0, "epoch/seconds": 1.0}
    facts = {"gpu": "GPU 0 of node8", "device": "NVIDIA T4", "mps": "yes"}
    allocator.add_epoch(trial_of("on T4"), metrics, facts, 1e6)
    assert allocator.gpus_for(trial_of()) == 0.5, "its first epoch measures nothing"
    # Ray chooses the GPU of a trial, so the next one may be on this kind.
    allocator.add_epoch(trial_of("on T4"), metrics, facts, 1e6 + 10)
    assert allocator.gpus_for(trial_of()) == 1.0


def test_a_trial_that_ran_out_of_memory_has_twice_the_share_up_to_a_whole_gpu() -> None:
    allocator = learnt([100.0 * number for number in range(1, 9)])
    assert [allocator.gpus_for(trial_of(factor=factor)) for factor in (1, 2, 4, 64)] == [0.125, 0.25, 0.5, 1.0]


def test_a_trial_keeps_its_share_until_it_ends() -> None:
    allocator = GpuAllocator(AUTO)
    first = trial_of("first")
    allocator.assign(first)
    Machine(allocator, [100, 190, 190], num_gpus=1).run(120)
    assert allocator.gpus_for(first) == 1.0
    allocator.release("first", 1e6)
    assert allocator.gpus_for(first) == 0.5
    assert allocator.resources_for(first).gpus == 0.5


def test_the_heaviest_trial_decides_what_fits() -> None:
    allocator = learnt([100.0 * number for number in range(1, 9)])
    heavy = {"memory/peak_gb": 24.0, "memory/device_gb": 80.0}
    allocator.add_epoch(trial_of(), heavy, HERE, 1e6)
    assert allocator.gpus_for(trial_of()) == pytest.approx(1 / 3)


def test_epochs_without_a_gpu_are_left_as_they_are_and_say_nothing_of_gpus() -> None:
    allocator = GpuAllocator(Resources(backbones={"large": ResourceOverride(gpus="auto")}))
    metrics = {"memory/peak_gb": 1.0, "memory/device_gb": 80.0, "epoch/seconds": 1.0}
    assert allocator.add_epoch(trial_of(), metrics, {"device": "x86_64"}, 0.0) == metrics
    assert allocator.gpus_for(trial_of()) == 0


@pytest.mark.parametrize(
    ("used", "count"), [(2.0, 1), (0.95, 1), (0.46, 1), (0.45, 2), (0.3, 3), (0.29, 3), (0.1, 8), (1e-9, 8)]
)
def test_memory_bounds_how_many_fit(used: float, count: int) -> None:
    assert trials_per_gpu(used) == count


# The decision alone.


def measured(totals: dict[int, float]) -> SharedSpeed:
    """Speeds that were measured, by number of trials on the GPU."""
    speed = SharedSpeed()
    for number, total in totals.items():
        for index in range(NUM_TRIALS * NUM_EPOCHS):
            speed.add(f"{number} {index % NUM_TRIALS}", number, total / number)
    return speed


@pytest.mark.parametrize(
    ("totals", "number"),
    [
        ({}, 1),
        ({2: 500, 3: 900}, 1),  # what one is worth alone comes first
        ({1: 100}, 2),
        ({1: 100, 3: 900}, 2),  # a number is not passed over
        ({1: 100, 2: 100}, 1),
        ({1: 100, 2: 104, 3: 500}, 1),
        ({1: 100, 2: 106}, 3),
        ({1: 100, 2: 106, 3: 107, 4: 900}, 2),
        ({1: 100, 2: 200, 3: 300, 4: 400}, 5),
    ],
)
def test_each_number_must_be_faster_than_the_one_before(totals: dict[int, float], number: int) -> None:
    for limit in range(1, 10):
        assert measured(totals).best_number(limit) == min(number, limit)


def test_a_number_is_measured_by_several_trials_of_several_epochs() -> None:
    speed = SharedSpeed()
    for trial in range(NUM_TRIALS):
        for _ in range(NUM_EPOCHS):
            assert (speed.total(1), speed.best_number(8)) == (None, 1)
            speed.add(f"trial {trial}", 1, 100.0)
        # Its further epochs do not stand for another trial.
        for _ in range(9):
            speed.add(f"trial {trial}", 1, 1.0)
    assert (speed.total(1), speed.best_number(8)) == (100.0, 2)


def test_an_epoch_or_a_trial_that_something_slows_down_does_not_count() -> None:
    speed = SharedSpeed()
    for trial, epochs in (("a", (100.0, 1.0, 100.0)), ("b", (5.0, 5.0, 5.0)), ("c", (100.0, 100.0, 900.0))):
        for images_per_s in epochs:
            speed.add(trial, 2, images_per_s)
    assert speed.total(2) == 200.0


def test_whatever_is_measured_in_whatever_order_the_answer_is_possible_and_final() -> None:
    chance = random.Random(0)
    for _ in range(200):
        speed = SharedSpeed()
        decided: list[float | None] = [None] * 9
        for _ in range(chance.randrange(300)):
            number = chance.randint(1, 8)
            speed.add(f"trial {chance.randrange(6)}", number, chance.choice([0.0, 1e-9, 1.0, 50.0, 1e9]))
            total = speed.total(number)
            assert decided[number] in (None, total), "what was measured once does not change"
            decided[number] = total
            for limit in (1, 2, 8):
                best = speed.best_number(limit)
                assert 1 <= best <= limit
                assert all(decided[below] is not None for below in range(1, best))


# Who is on a GPU.


def test_a_number_of_trials_is_certain_only_on_a_full_gpu_that_has_not_changed() -> None:
    occupancy = GpuOccupancy()
    assert occupancy.num_trials("GPU 0", 1.0, 1e9) is None, "an empty GPU"
    occupancy.add("a", "GPU 0", 1 / 3, 0.0)
    occupancy.add("b", "GPU 0", 1 / 3, 10.0)
    assert occupancy.num_trials("GPU 0", 1.0, 1e9) is None, "a third trial may have begun, and not reported yet"
    occupancy.add("c", "GPU 0", 0.3333, 20.0)
    occupancy.add("other", "GPU 1", 1.0, 1e9)
    began = 20.0 + REPORT_DELAY_S
    assert occupancy.num_trials("GPU 0", 4.0, began + 3.9) is None, "the epoch began before"
    assert occupancy.num_trials("GPU 0", 4.0, began + 4.1) == 3
    # Reporting again is no change, and another GPU's changes are not this one's.
    occupancy.add("c", "GPU 0", 0.3333, 50.0)
    occupancy.remove("other", 50.0)
    occupancy.remove("stranger", 50.0)
    assert occupancy.num_trials("GPU 0", 4.0, 50.0) == 3

    occupancy.remove("b", 60.0)
    assert occupancy.num_trials("GPU 0", 1.0, 1e9) is None
    occupancy.add("d", "GPU 0", 1 / 3, 70.0)
    assert occupancy.num_trials("GPU 0", 4.0, 73.0) is None
    assert occupancy.num_trials("GPU 0", 4.0, 1e9) == 3


@pytest.mark.parametrize("shares", [[1.0], [2.0], [0.5, 0.5], [0.5, 0.25, 0.25], [1 / 7] * 7, [1 / 8] * 8])
def test_every_sum_that_leaves_no_room_is_full(shares: list[float]) -> None:
    occupancy = GpuOccupancy()
    for number, share in enumerate(shares):
        assert occupancy.num_trials("GPU 0", 1.0, 1e9) is None
        occupancy.add(str(number), "GPU 0", share, 0.0)
    assert occupancy.num_trials("GPU 0", 1.0, 1e9) == len(shares)


# In a sweep.


def sharing_sweep(raw_study: dict[str, Any], url: str, clock: Clock, gpus: float | str = "auto") -> Sweep:
    raw = raw_study | {"resources": {"gpus": gpus}, "pause_after": 99}
    raw["search"] = raw["search"] | {"max_concurrent": 6, "pruner": {"type": "none"}}
    return Sweep.resume(parse_spec(raw, "a test"), StudyDatabase(url), MemoryTracker(), clock=clock)


def test_a_sweep_stores_who_shared_and_its_gpu_hours_are_those_of_the_shares(
    raw_study: dict[str, Any], record_url: str
) -> None:
    clock = Clock()
    sweep = sharing_sweep(raw_study, record_url, clock, gpus=0.5)
    trials = [trial for trial in (sweep.next_trial() for _ in range(2)) if trial is not None]
    for epoch in range(1, 4):
        for trial in trials:
            clock.now += 20.0
            metrics = [*curve(trial.config)][epoch - 1] | {"epoch/seconds": 20.0, "train/images_per_s": 50.0}
            sweep.on_epoch(trial.trial_id, epoch, metrics, HERE)
    stored = sweep.studies[0].search_table.trials[1].epochs
    assert [epoch["gpu/share"] for epoch in stored] == [0.5, 0.5, 0.5]
    # In its first epoch it had just come.
    assert [epoch.get("gpu/trials") for epoch in stored] == [None, 2, 2]
    assert sweep.gpu_hours == pytest.approx(6 * 20 * 0.5 / 3600)

    # Who has ended is not on the GPU any more.
    sweep.on_failure(trials[0].trial_id, Failure(cause=FailureCause.DIVERGED, error="TrainingDiverged: nan"))
    successor = sweep.next_trial()
    assert successor is not None
    for epoch in range(1, 4):
        clock.now += 20.0
        sweep.on_epoch(successor.trial_id, epoch, [*curve(successor.config)][epoch - 1] | {"epoch/seconds": 10.0}, HERE)
    assert sweep.studies[0].search_table.trials[2].epochs[-1]["gpu/trials"] == 2

    # A later driver counts the shares that trials had, whatever the spec says now.
    sweep.close()
    later = sharing_sweep(raw_study, record_url, clock)
    assert later.gpu_hours == pytest.approx((6 * 20 + 3 * 10) * 0.5 / 3600)


def lost() -> Failure:
    error = "AcceleratorError: CUDA error: an illegal memory access was encountered"
    return Failure(cause=FailureCause.LOST, error=error, ends_process=True, lost_gpu="GPU 0 of node7")


def test_trials_that_are_lost_together_are_one_loss_of_their_gpu(raw_study: dict[str, Any], record_url: str) -> None:
    clock = Clock()
    sweep = sharing_sweep(raw_study, record_url, clock, gpus=0.25)
    for loss in range(3):
        trials = [trial for trial in (sweep.next_trial() for _ in range(4)) if trial is not None]
        assert len(trials) == 4
        clock.now += 10.0
        for trial in trials:
            assert (sweep.halt is None) == (loss < 2 or trial is trials[0])
            clock.now += 1.0
            sweep.on_failure(trial.trial_id, lost())
            if loss == 1 and trial is trials[0]:
                # An epoch from before the loss, which was on its way.
                sweep.on_epoch(trials[1].trial_id, 1, {"train/loss": 1.0, "val/accuracy": 0.5}, HERE)
    assert sweep.halt is not None
    assert sweep.halt.reason.startswith("paused: GPU 0 of node7 failed 3 times in a row")


def test_trials_lost_one_after_another_are_losses_of_their_own(raw_study: dict[str, Any], record_url: str) -> None:
    clock = Clock()
    sweep = sharing_sweep(raw_study, record_url, clock, gpus=0.25)
    trials = [trial for trial in (sweep.next_trial() for _ in range(3)) if trial is not None]
    for trial in trials:
        assert sweep.halt is None
        # It was assigned before the one before it was lost, and has waited for its worker.
        sweep.on_start(trial.trial_id)
        clock.now += 10.0
        sweep.on_failure(trial.trial_id, lost())
    assert sweep.halt is not None
