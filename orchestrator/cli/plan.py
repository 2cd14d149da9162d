"""The command `plan`: the studies of a spec and what they will cost."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.fitting_table import FittingTable, Row
from orchestrator.cli.options import (
    AddressOption,
    HomeOption,
    JsonOption,
    SpecArgument,
    WeightsOption,
    console,
    error_console,
    print_json,
    print_prose,
    whole_number,
)
from orchestrator.cli.plan_progress import PlanProgress, load_progress
from orchestrator.environment.home import Home, home_at, weights_at
from orchestrator.errors import SpecError
from orchestrator.spec.labels import SETTING, format_duration, study_label, varying_fields
from trainer.catalog import BACKBONES, BUNDLED
from trainer.machine import usable_cores
from trainer.plain_text import counted
from trainer.terminal import shown

if TYPE_CHECKING:
    from orchestrator.environment.requirements import Requirements
    from orchestrator.spec.plan import StudyPlan
    from orchestrator.spec.schema import SweepSpec

WorkersOption = Annotated[
    int | None,
    typer.Option(
        parser=whole_number(1, 10_000), help="Trials at once; default: as many as fit the cores of this machine."
    ),
]


def plan(
    spec: SpecArgument,
    home: HomeOption = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="First time a short trial of each method and backbone on this machine.")
    ] = False,
    workers: WorkersOption = None,
    weights: WeightsOption = None,
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the studies and trials of a spec, how many are finished, what the rest will cost, and what it lacks here.

    Starts nothing. The estimate comes from trials of this home, or from `--calibrate`. It assumes that no trial is
    pruned. With `--address`, the CPUs, GPUs and downloads of the cluster's nodes are left to `launch` and `doctor`.

    Exit status: 0 if `launch` would run the spec, 1 if something is missing, 2 for a mistake in the spec.
    """
    from orchestrator.environment.requirements import check_requirements, find_missing
    from orchestrator.spec.loader import find_spec, load_cluster, load_spec
    from orchestrator.spec.plan import plan_sweep

    path = find_spec(spec)
    cluster = load_cluster(path)
    place = home_at(home, cluster)
    weights = weights_at(weights, cluster)
    sweep = load_spec(path, functools.partial(find_missing, home=place, weights=weights))
    plans = plan_sweep(sweep).studies
    progress = load_progress(sweep, place)

    unfinished = [study for study in plans if study.key not in progress.finished_studies]
    required = check_requirements(sweep, unfinished, place, weights, address=address or cluster.address)
    if unfinished:
        # Who only reads a finished sweep needs no home to write to.
        required.problems += place.problems()
    if calibrate and not required.problems:
        _calibrate(sweep, plans, place, weights)
        # Again, because the estimate uses the measurements.
        progress = load_progress(sweep, place)

    if as_json:
        print_json(_plan_json(sweep, plans, progress, place, workers or default_workers(sweep), required))
    else:
        _print_plan(sweep, plans, progress, place, workers)
        _print_requirements(path, required)
    if required.problems:
        raise typer.Exit(1)


def _print_plan(
    sweep: SweepSpec, plans: list[StudyPlan], progress: PlanProgress, place: Home, workers: int | None
) -> None:
    from orchestrator.report.render import print_blocks
    from orchestrator.report.searched import searched_block

    console.print(_plan_table(sweep, plans, progress))
    print_blocks([searched_block(plans)], console)

    num_search = sum(study.search.trials for study in plans)
    num_final = len(plans) * len(sweep.final.seeds)
    num_finished = sum(progress.num_finished.values())
    print_prose(
        f"{counted(len(plans), 'study')}, {counted(num_search, 'search trial')}, {counted(num_final, 'final trial')}, "
        f"{_resources_per_trial(sweep)}; {counted(num_finished, 'is finished', 'are finished')}"
    )

    note = small_images_note(plans)
    if note:
        print_prose(note)
    _print_precision(sweep, plans)
    _print_sharing(sweep)

    if not progress.has_estimate:
        console.print("no estimate: nothing like it was run in this home; --calibrate times a short trial of each.")
        return
    num_slots = workers or default_workers(sweep)
    _print_memory(sweep, plans, place, num_slots)
    _print_estimate(sweep, plans, progress, num_slots)


def _print_requirements(path: Path, required: Requirements) -> None:
    """Print what `launch` would download, and what it would complain of."""
    for name in required.downloads:
        console.print(f"the weights of {name} are not on this machine: `launch` downloads them first")
    if required.problems:
        # As `launch` says it.
        for line in str(SpecError(str(path), required.problems)).splitlines():
            console.print(line)


def _plan_table(sweep: SweepSpec, plans: list[StudyPlan], progress: PlanProgress) -> FittingTable:
    columns, common = varying_fields(plans, SETTING)
    columns = ["task", "method", *columns]
    rows = []
    for study in plans:
        seconds = progress.seconds_left.get(study.key)
        numbers = (
            str(study.search.trials),
            str(len(sweep.final.seeds)),
            str(progress.num_finished.get(study.key, 0)),
            # A question mark, not zero: nothing like this study was ever run here.
            "?" if seconds is None else format_duration(seconds),
        )
        rows.append(Row(names=study_label(study, columns), numbers=tuple(map(shown, numbers))))
    return FittingTable(title=common, names=tuple(columns), numbers=("trials", "final", "done", "work"), rows=rows)


def small_images_note(plans: list[StudyPlan]) -> str | None:
    """Return what the bundled network does to photographs, if tasks that may have some are planned with it."""
    from orchestrator.sweep.cost_model import most_expensive_config

    side = BACKBONES[BUNDLED].image_size
    studies = (study for study in plans if study.backbone == BUNDLED and not study.task.startswith("demo/"))
    # A spec may ask for larger images than the network's own.
    if not any(most_expensive_config(study, study.search.seed).pixels == side for study in studies):
        return None
    return (
        f"note: {BUNDLED}, which ships with sptune, sees {side}x{side} pixels of an image. For photographs use a "
        "larger network, such as vit_base_patch16_224.mae: `backbones` in the spec, `--backbone` of `sptune new`."
    )


def _print_precision(sweep: SweepSpec, plans: list[StudyPlan]) -> None:
    """Print what fp32 costs on a GPU, if studies train in it there."""
    in_fp32 = [
        study
        for study in plans
        if sweep.resources.for_backbone(study.backbone).initial_gpus and study.precision == "fp32"
    ]
    if in_fp32:
        console.print(
            f"{len(in_fp32)} of {counted(len(plans), 'study')} train in fp32, in which a GPU is much slower than in "
            "bf16; `precision: bf16` in `fixed` is for speed, tf32 is in between"
        )


def _print_sharing(sweep: SweepSpec) -> None:
    """Print what sharing a GPU needs, if the spec asks for it."""
    shares = [sweep.resources.for_backbone(backbone).gpus for backbone in sweep.backbones]
    if any(gpus == "auto" or 0 < gpus < 1 for gpus in shares):
        console.print(
            "trials that share a GPU take turns unless MPS runs on its node, which `sptune doctor` tells; with gpus: "
            "auto, none share one without it"
        )


def _print_estimate(sweep: SweepSpec, plans: list[StudyPlan], progress: PlanProgress, num_slots: int) -> None:
    estimates = {key: seconds for key, seconds in progress.seconds_left.items() if seconds is not None}
    seconds = sum(estimates.values())
    gpus = {study.key: sweep.resources.for_backbone(study.backbone).initial_gpus for study in plans}
    gpu_hours = sum(estimate * gpus[key] for key, estimate in estimates.items()) / 3600

    # "At most", because pruning is not predicted.
    slots = counted(num_slots, "worker")
    text = f"at most {format_duration(seconds)} of work, {format_duration(seconds / num_slots)} on {slots}"
    if gpu_hours:
        text += f", {gpu_hours:.1f} GPU-hours"
    num_unknown = len(progress.seconds_left) - len(estimates)
    if num_unknown:
        text += f"; not counted, because nothing like it was run: {num_unknown} of {counted(len(plans), 'study')}"
    print_prose(text)


def _plan_json(
    sweep: SweepSpec,
    plans: list[StudyPlan],
    progress: PlanProgress,
    home: Home,
    num_slots: int,
    required: Requirements,
) -> dict[str, Any]:
    known = [seconds for seconds in progress.seconds_left.values() if seconds is not None]
    return {
        "sweep": sweep.name,
        "home": home.root,
        "search_trials": sum(study.search.trials for study in plans),
        "final_trials": len(plans) * len(sweep.final.seeds),
        "finished": sum(progress.num_finished.values()),
        "workers": num_slots,
        "worker_seconds_left": sum(known) if known else None,
        "studies_without_estimate": len(plans) - len(known),
        "problems": required.problems,
        "downloads": required.downloads,
        "studies": [
            {
                **study.axes,
                "search_trials": study.search.trials,
                "final_trials": len(sweep.final.seeds),
                "finished": progress.num_finished.get(study.key, 0),
                "worker_seconds_left": progress.seconds_left.get(study.key),
            }
            for study in plans
        ],
    }


def _print_memory(sweep: SweepSpec, plans: list[StudyPlan], home: Home, num_slots: int) -> None:
    """Print whether the trials that share a device fit its memory."""
    from orchestrator.sweep.cost_model import CostModel, memory_share

    cost_model = CostModel.load(home.cost_model_file)
    for study in _first_of_each_kind(plans):
        resources = sweep.resources.for_backbone(study.backbone)
        rate = cost_model.rate(study, resources.initial_gpus)
        if rate is None:
            continue

        # Trials share a device: what counts is the sum of those that run beside each other.
        share = memory_share(resources, rate, num_slots)
        facts = f"{rate.peak_gb:.1f} GB a trial, {share:.0%} of the memory for all trials at once: "
        verdict = shown("fits")
        if share > 1:
            verdict = shown("does not fit", "red") + shown("; give each trial more in `resources`")
        console.print(shown(f"memory of {study.method} {study.backbone}: {facts}") + verdict, soft_wrap=True)


def _calibrate(sweep: SweepSpec, plans: list[StudyPlan], home: Home, weights: str | None) -> None:
    """Time two epochs of each method and backbone on its first task, at the largest values of the space."""
    from orchestrator.drivers.context import trial_context
    from orchestrator.drivers.trial_runner import run_trial
    from orchestrator.sweep.cost_model import CostModel, most_expensive_config

    home.create()
    cost_model = CostModel.load(home.cost_model_file)
    kinds = _first_of_each_kind(plans)
    for index, study in enumerate(kinds, start=1):
        resources = sweep.resources.for_backbone(study.backbone)
        config = most_expensive_config(study, study.search.seed)
        step = f"timing {study.method} on {study.task}, {index} of {len(kinds)}"
        # Where nothing can spin, a line says that the command is at work. Standard output is for the plan.
        if not error_console.is_terminal:
            error_console.print(step)
        with tempfile.TemporaryDirectory() as folder, error_console.status(step):
            context = trial_context(sweep, home, weights, folder)
            context = dataclasses.replace(context, cpus=resources.cpus, gpus=resources.initial_gpus)
            events = [*run_trial(config, context)]
        cost_model.update_from_calibration(study, events, resources.initial_gpus, home.data_root)


def _first_of_each_kind(plans: list[StudyPlan]) -> list[StudyPlan]:
    """Return the first study of each method and backbone."""
    first: dict[tuple[str, str], StudyPlan] = {}
    for study in plans:
        # Cost depends on method and backbone; tasks differ only in their number of images.
        first.setdefault((study.method, study.backbone), study)
    return list(first.values())


def _resources_per_trial(sweep: SweepSpec) -> str:
    """Return what a trial occupies, with the backbones that differ."""
    backbones_by_text: dict[str, list[str]] = {}
    for backbone in sweep.backbones:
        resources = sweep.resources.for_backbone(backbone)
        gpus = resources.gpus if resources.gpus == "auto" else f"{resources.gpus:g}"
        kind = f" ({resources.accelerator_type})" if resources.accelerator_type else ""
        backbones_by_text.setdefault(f"{resources.cpus} CPU and {gpus} GPU{kind}", []).append(backbone)

    if len(backbones_by_text) == 1:
        return f"each on {next(iter(backbones_by_text))}"
    return ", ".join(f"of {' and '.join(names)} on {text}" for text, names in backbones_by_text.items())


def default_workers(sweep: SweepSpec) -> int:
    """Return how many trials fit the cores that may be used on this machine."""
    # The largest trial decides, so that the estimate holds for every study.
    cpus = max(sweep.resources.for_backbone(backbone).cpus for backbone in sweep.backbones)
    return max(1, usable_cores() // cpus)
