"""The commands that ask before a sweep: `plan` and `replay`."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from orchestrator.cli.lookup import find_sweep
from orchestrator.cli.options import HomeOption, SpecArgument, WeightsOption, console, missing, place_for
from orchestrator.environment.connections import open_database
from orchestrator.environment.home import Home, home_at
from orchestrator.errors import SpecError, UserError
from orchestrator.spec.labels import format_duration, study_label, varying_fields
from orchestrator.spec.loader import find_spec, load_spec
from orchestrator.spec.plan import plan_sweep
from orchestrator.spec.schema import SweepSpec

WorkersOption = Annotated[
    int | None, typer.Option(min=1, help="Trials at once; default: what fits this machine's cores.")
]


def plan(
    spec: SpecArgument,
    home: HomeOption = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="First time a short trial of each method and backbone, on this machine.")
    ] = False,
    workers: WorkersOption = None,
    weights: WeightsOption = None,
) -> None:
    """Show the studies and trials a spec leads to, what is done of them, and what the rest will cost; start nothing.

    The estimate comes from trials of this home, or from `--calibrate`, and assumes that none is pruned.
    """
    sweep = load_spec(find_spec(spec))
    place = home_at(home, sweep.cluster)
    if calibrate:
        _calibrate(sweep, place, weights)
    plans = plan_sweep(sweep).studies
    done, costs, known = _load_existing(sweep, place)
    named, same = varying_fields(plans, ("backbone", "train_size"))
    table = Table(box=None, pad_edge=False, title=same, title_justify="left")
    for name in ("task", "method", *named):
        table.add_column(name, no_wrap=True)
    for name in ("trials", "final", "done", "work"):
        table.add_column(name, justify="right", no_wrap=True)
    for study in plans:
        counts = (str(sweep.search.trials), str(len(sweep.final.seeds)), str(done.get(study.key, 0)))
        cost = costs.get(study.key)
        table.add_row(
            *study_label(study, ["task", "method", *named]), *counts, "?" if cost is None else format_duration(cost)
        )
    console.print(table)
    for method in sweep.methods:
        searched = ", ".join(sweep.params_for(method)[1]) or "nothing"
        console.print(f"{method} searches {searched}", highlight=False)
    trials, finals = len(plans) * sweep.search.trials, len(plans) * len(sweep.final.seeds)
    console.print(
        f"{len(plans)} studies, {trials} search trials, {finals} final trials, "
        f"{_resources_per_trial(sweep)}; {sum(done.values())} are done",
        highlight=False,
    )
    slots = workers or _num_slots(sweep)
    if not known:
        console.print("no estimate: nothing like it was run in this home; --calibrate times a short trial of each.")
    else:
        seconds = sum(cost for cost in costs.values() if cost is not None)
        unknown = sum(cost is None for cost in costs.values())
        gpus = {study.key: sweep.resources.for_backbone(study.backbone).initial_gpus for study in plans}
        gpu_seconds = sum(cost * gpus[key] for key, cost in costs.items() if cost is not None)
        console.print(
            f"at most {format_duration(seconds)} of work, {format_duration(seconds / slots)} on {slots} workers"
            + (f", {gpu_seconds / 3600:.1f} GPU-hours" if gpu_seconds else "")
            + (f"; {unknown} studies not counted: nothing like them was run" if unknown else ""),
            highlight=False,
        )
        _print_memory(sweep, place, slots)


def replay(
    spec: SpecArgument,
    home: HomeOption = None,
    like: Annotated[
        str | None, typer.Option(metavar="SWEEP", help="A finished sweep whose curves to use; default: synthetic ones.")
    ] = None,
    workers: WorkersOption = None,
) -> None:
    """Ask what a spec would do: its sampler, pruner and budget on known learning curves and a virtual clock.

    Nothing is trained and nothing is kept.
    """
    from orchestrator.cli.progress import progress_table
    from orchestrator.drivers.replay import Clock, Curves, RecordedCurves, SyntheticCurves, run_sweep
    from orchestrator.study.storage.database import StudyDatabase
    from orchestrator.study.study import load_studies
    from orchestrator.sweep.sweep import Sweep
    from orchestrator.sweep.tracker import MemoryTracker

    sweep_spec = load_spec(find_spec(spec))
    curves: Curves = SyntheticCurves(plan_sweep(sweep_spec).studies)
    if like is not None:
        _, record, known = find_sweep(home, like)
        curves = RecordedCurves(load_studies(known, record))
    now = Clock()
    slots = workers or _num_slots(sweep_spec)
    with tempfile.TemporaryDirectory() as folder:
        sweep = Sweep(sweep_spec, StudyDatabase(f"sqlite:///{folder}/studies.db"), MemoryTracker(), clock=now)
        try:
            busy = run_sweep(sweep, curves, now, slots)
        except ValueError as error:
            raise UserError(f"--like {like}: {error}") from None
    console.print(progress_table(sweep.summaries()))
    whole, share = sweep.num_finished * max(study.plan.epochs for study in sweep.studies), busy / (now.now * slots)
    ran = sum(len(trial.epochs) for study in sweep.studies for trial in study.trials)
    console.print(
        f"{sweep.num_finished} trials in {format_duration(now.now)} on {slots} workers, busy {share:.0%}; "
        f"{ran} of {whole} epochs were trained, the others pruned or answered from the record"
        + (f"; {sweep.halt.reason}" if sweep.halt else ""),
        highlight=False,
        soft_wrap=True,
    )


def _load_existing(sweep: SweepSpec, home: Home) -> tuple[dict[str, int], dict[str, float | None], bool]:
    """Of each study, how many trials are done and what the rest costs; whether anything is known of costs."""
    empty = home.database_file is not None and not home.database_file.exists()
    if not home.database_url or (empty and not Path(home.cost_model_file).exists()):
        return {}, {}, False
    from orchestrator.study.study import load_studies
    from orchestrator.sweep.conflicts import check_spec_matches_trials
    from orchestrator.sweep.cost_model import CostModel

    throughput = CostModel.load(home.cost_model_file)
    opened = load_studies(sweep, open_database(home))
    check_spec_matches_trials(sweep, opened)
    done = {study.plan.key: study.summary().num_finished for study in opened}
    costs = {study.plan.key: throughput.estimate(study, home.data_root).seconds for study in opened}
    return done, costs, any(cost is not None for cost in costs.values())


def _print_memory(sweep: SweepSpec, home: Home, slots: int) -> None:
    """Whether the trials that share a device fit its memory."""
    from orchestrator.sweep.cost_model import CostModel, memory_share

    throughput = CostModel.load(home.cost_model_file)
    for key in dict.fromkeys((study.method, study.backbone) for study in plan_sweep(sweep).studies):
        study = next(study for study in plan_sweep(sweep).studies if (study.method, study.backbone) == key)
        own = sweep.resources.for_backbone(study.backbone)
        if (rate := throughput.rate(study, own.initial_gpus)) is not None:
            share = memory_share(own, rate, slots)
            verdict = "fits" if share <= 1 else "[red]does not fit[/red]; give each trial more in `resources`"
            console.print(
                f"memory of {' '.join(key)}: {rate.peak_gb:.1f} GB a trial, "
                f"{share:.0%} of the device with those beside it: {verdict}",
                highlight=False,
                soft_wrap=True,
            )


def _calibrate(sweep: SweepSpec, home: Home, weights: str | None) -> None:
    """Time two epochs of each method and backbone on its first task, at the largest values of the space."""
    from orchestrator.drivers.trial_runner import run_trial
    from orchestrator.sweep.cost_model import CostModel, most_expensive_config

    if problems := missing(sweep, home, weights):
        raise SpecError("the spec", problems)
    home.create()
    throughput = CostModel.load(home.cost_model_file)
    for study in {(study.method, study.backbone): study for study in reversed(plan_sweep(sweep).studies)}.values():
        with tempfile.TemporaryDirectory() as folder, console.status(f"timing {study.method} on {study.task}"):
            share = sweep.resources.for_backbone(study.backbone)
            place = dataclasses.replace(
                place_for(sweep, home, weights, folder), cpus=share.cpus, gpus=share.initial_gpus
            )
            events = [*run_trial(most_expensive_config(study, sweep.search.seed), place)]
        throughput.update_from_calibration(study, events, share.initial_gpus, home.data_root)


def _resources_per_trial(sweep: SweepSpec) -> str:
    """What a trial occupies, of each backbone that differs."""
    shares: dict[str, list[str]] = {}
    for backbone in sweep.backbones:
        share = sweep.resources.for_backbone(backbone)
        gpus = share.gpus if share.gpus == "auto" else f"{share.gpus:g}"
        kind = f" ({share.accelerator_type})" if share.accelerator_type else ""
        shares.setdefault(f"{share.cpus} CPU and {gpus} GPU{kind}", []).append(backbone)
    if len(shares) == 1:
        return f"each on {next(iter(shares))}"
    return ", ".join(f"of {' and '.join(names)} on {text}" for text, names in shares.items())


def _num_slots(sweep: SweepSpec) -> int:
    """How many trials fit this machine's cores at once."""
    cpus = max(sweep.resources.for_backbone(backbone).cpus for backbone in sweep.backbones)
    return max(1, (os.cpu_count() or 1) // cpus)
