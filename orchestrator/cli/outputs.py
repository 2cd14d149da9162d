"""The commands that make something of a sweep's results: `figures`, `export` and `register`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.options import HomeOption, SweepArgument, SweepsArgument, WhereOption, console
from orchestrator.cli.trial_filter import parse_trial_filter
from orchestrator.environment.lookup import find_sweep, load_combinable_sweeps, load_sweeps
from orchestrator.errors import UserError
from orchestrator.study.trial import TrialState

OutOption = Annotated[Path | None, typer.Option(help="Folder to write into; default: one named after the sweep, here.")]


def figures(
    sweeps: SweepsArgument,
    home: HomeOption = None,
    out: OutOption = None,
    each_study: Annotated[
        bool, typer.Option("--each-study", help="Those of every study, too; MLflow has them with its parent run.")
    ] = False,
) -> None:
    """Draw what the sweeps have data for, as PNG and PDF.

    Test accuracy by task beside published numbers, tuning-set size, model size, NMI; of each study learning curves,
    accuracy against each parameter, init strategy by images used, parallel coordinates, importances.
    """
    from orchestrator.figures.draw import draw_figures, save_figure
    from orchestrator.report.results_table import published_scores
    from orchestrator.study.importance import param_importances

    studies = load_combinable_sweeps(home, sweeps, epochs=True)
    alone = len(studies) == 1  # then its own figures are the sweep's
    published = published_scores({study.plan.backbone for study in studies})
    folder = out or Path(f"{studies[0].spec.name}-figures")
    count = 0
    with console.status("drawing"):
        drawn = draw_figures(
            studies, published=published, importances=param_importances, each_study=each_study or alone
        )
        for stem, figure in drawn:
            try:
                png, _ = save_figure(figure, folder, stem)
            except OSError as error:
                raise _not_written(error) from None
            console.print(f"{png}", highlight=False, soft_wrap=True)
            count += 1
    if not count:
        raise UserError(f"{', '.join(sweeps)}: no trial is finished, so there is nothing to draw.")
    console.print(f"{count} figures, each as .png and .pdf", highlight=False)


def export(sweeps: SweepsArgument, home: HomeOption = None, out: OutOption = None) -> None:
    """Write trials.parquet, epochs.parquet and predictions.parquet for other tools; the schema tells each column."""
    from orchestrator.report.export import export_studies as write

    place, _, first = find_sweep(home, sweeps[0])
    studies = load_sweeps(home, sweeps, epochs=True)
    with console.status("writing"):
        try:
            files, absent = write(studies, place.trials_folder, out or Path(f"{first.name}-export"))
        except OSError as error:
            raise _not_written(error) from None
    for file in files:
        console.print(f"{file}", highlight=False, soft_wrap=True)
    if absent:
        where = f"in {place.trials_folder(first.name)}" if len(sweeps) == 1 else "with their sweeps"
        console.print(f"{absent} complete trials have no predictions {where}", highlight=False, soft_wrap=True)


def register(
    sweep: SweepArgument,
    where: WhereOption = None,
    name: Annotated[str | None, typer.Option(help="Of the model; default: made of sweep, task and method.")] = None,
    home: HomeOption = None,
) -> None:
    """Put a study's model into MLflow's registry: its final trial of the first seed, or of `--where seed=44`.

    Which seed is best on test is not asked: that would be choosing on test.
    """
    from orchestrator.study.study import load_studies
    from orchestrator.tracking.mlflow_registry import register as put

    place, record, spec = find_sweep(home, sweep)
    fits = parse_trial_filter(where, [])
    picked = []
    for study in load_studies(spec, record, epochs=False):
        done = [trial for trial in study.requested_final_trials if trial.state is TrialState.COMPLETE and fits(trial)]
        if done:
            picked.append((study, min(done, key=lambda trial: study.spec.final.seeds.index(trial.config.seed))))
    if not picked:
        raise UserError(
            f"no complete final trial of {spec.name} is like that; `sptune status {sweep}` shows what there is."
        )
    if name is not None and len(picked) > 1:
        keys = ", ".join(study.plan.key for study, _ in picked[:4])
        raise UserError(f"--name is for one study, and {len(picked)} are chosen: {keys}; choose one with --where.")
    for study, trial in picked:
        run_id, told = study.final_table.synced_run(trial.number)
        if run_id is None or told is None:
            raise UserError(f"MLflow was not told of {trial.trial_id} yet; `sptune resume {sweep}` tells it.")
        plan = study.plan
        own = name or re.sub(
            r"[^\w.-]+", "-", f"{spec.name}-{plan.task}-{plan.method}-{plan.backbone}-{plan.train_size}"
        )
        version = put(place.mlflow_uri, run_id, own)
        console.print(f"models:/{own}/{version}  {plan.key}, seed {trial.config.seed}", highlight=False)


def _not_written(error: OSError) -> UserError:
    """In one sentence; pyarrow's errors have the file in the reason."""
    reason = str(error.strerror or error).rstrip(".")
    return UserError(f"{error.filename}: {reason}." if error.filename else f"{reason}.")
