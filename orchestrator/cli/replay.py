"""The command `replay`: what a spec would do, on learning curves that are known or invented."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.completion import complete_sweep
from orchestrator.cli.options import HomeOption, JsonOption, SpecArgument, console, print_json, print_prose
from orchestrator.cli.plan import WorkersOption, default_workers
from orchestrator.cli.status import study_json
from orchestrator.environment.home import home_at
from orchestrator.environment.lookup import find_sweep
from orchestrator.errors import UserError
from orchestrator.spec.labels import format_duration
from trainer.plain_text import counted


def replay(
    spec: SpecArgument,
    home: HomeOption = None,
    like: Annotated[
        str | None,
        typer.Option(
            metavar="SWEEP",
            help="A finished sweep whose curves to use; default: synthetic ones.",
            autocompletion=complete_sweep,
        ),
    ] = None,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Simulate a spec: its sampler, pruner and budget on known learning curves and a virtual clock.

    Nothing is trained and nothing is kept: all numbers are synthetic. Invented curves take the seconds that an epoch
    took in this home, where `plan` knows them.
    """
    from orchestrator.cli.progress import progress_table
    from orchestrator.drivers.replay import (
        SECONDS_PER_EPOCH,
        Clock,
        Curves,
        RecordedCurves,
        ReplayDriver,
        SyntheticCurves,
    )
    from orchestrator.spec.loader import find_spec, load_spec
    from orchestrator.spec.plan import plan_sweep
    from orchestrator.study.storage.database import StudyDatabase
    from orchestrator.study.storage.sqlite_url import sqlite_url
    from orchestrator.study.study import load_studies
    from orchestrator.sweep.cost_model import CostModel
    from orchestrator.sweep.sweep import Sweep
    from orchestrator.sweep.tracker import MemoryTracker

    sweep_spec = load_spec(find_spec(spec))
    plans = plan_sweep(sweep_spec).studies
    place = home_at(home, sweep_spec.cluster)
    cost_model = CostModel.load(place.cost_model_file)
    measured = {plan.key: cost_model.epoch_seconds(sweep_spec, plan, place.data_root) for plan in plans}
    num_measured = sum(map(bool, measured.values()))

    curves: Curves = SyntheticCurves(plans, measured=measured)
    origin = "invented learning curves on a virtual clock; nothing was trained"
    speed = f"an epoch takes {SECONDS_PER_EPOCH:g} s, which is invented too; `sptune plan --calibrate` measures it"
    if num_measured:
        speed = f"an epoch takes as long as measured in {place.root}"
    if 0 < num_measured < len(plans):
        unknown = counted(len(plans) - num_measured, "study")
        speed += f", and {SECONDS_PER_EPOCH:g} s in {unknown} of which nothing like it was run"
    if like is not None:
        _, database, recorded = find_sweep(home, like)
        curves = RecordedCurves(load_studies(recorded, database))
        speed = f"an epoch takes as long as in {recorded.name}"
        origin = f"learning curves of {recorded.name} on a virtual clock; nothing was trained"

    clock = Clock()
    num_slots = workers or default_workers(sweep_spec)
    with tempfile.TemporaryDirectory() as folder:
        # A database of its own: a simulation must not touch the sweep of the same name.
        scratch = StudyDatabase(sqlite_url(Path(folder).absolute() / "studies.db"))
        sweep = Sweep.resume(sweep_spec, scratch, MemoryTracker(), clock=clock)
        driver = ReplayDriver(curves, clock, workers=num_slots)
        try:
            driver.run(sweep)
        except ValueError as error:
            # A recorded sweep has no curve for a trial with more epochs than it ran.
            raise UserError(f"--like {like}: {error}") from None

    # The comparison is with a sweep that prunes nothing.
    max_epochs = max(study.plan.epochs for study in sweep.studies)
    num_trained = sum(len(trial.epochs) for study in sweep.studies for trial in study.trials)
    num_epochs = sweep.num_finished * max_epochs
    busy_share = driver.busy_seconds / (clock.now * num_slots)
    if as_json:
        print_json(
            {
                "sweep": sweep_spec.name,
                "synthetic": True,
                "curves": origin,
                "speed": speed,
                "finished": sweep.num_finished,
                "seconds": clock.now,
                "workers": num_slots,
                "busy_share": busy_share,
                "trained_epochs": num_trained,
                "unpruned_epochs": num_epochs,
                "halted": sweep.halt.reason if sweep.halt else None,
                "studies": [{"synthetic": True, **study_json(summary)} for summary in sweep.summaries()],
            }
        )
        return

    console.print(progress_table(sweep.summaries(), synthetic=origin))
    print_prose(
        f"synthetic: {counted(sweep.num_finished, 'trial')} in {format_duration(clock.now)} on "
        f"{counted(num_slots, 'worker')}, busy {busy_share:.0%}; {num_trained:,} of {counted(num_epochs, 'epoch')} "
        "were trained, the others were pruned or known"
        + (f"; {sweep.halt.reason}" if sweep.halt else "")
        + f"; {speed}"
    )
