"""The commands that turn results into files and models: `figures`, `export` and `register`."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.options import HomeOption, SweepArgument, SweepsArgument, WhereOption, console, repeated_home
from orchestrator.cli.trial_filter import first_final_trials
from orchestrator.environment.lookup import find_sweep, load_combinable_sweeps, load_sweeps
from orchestrator.errors import UserError
from orchestrator.spec.labels import study_text
from trainer.plain_text import counted

if TYPE_CHECKING:
    from orchestrator.study.study import Study

OutOption = Annotated[
    Path | None, typer.Option(help="Folder to write into; default: a folder here that is named after the sweep.")
]


def figures(
    sweeps: SweepsArgument,
    home: HomeOption = None,
    out: OutOption = None,
    each_study: Annotated[
        bool,
        typer.Option("--each-study", help="Draw those of every study, too. MLflow has them in the parent runs."),
    ] = False,
) -> None:
    """Draw the figures that the sweeps have data for, as PNG and PDF.

    Of a sweep: test accuracy by task beside published numbers, accuracy by cost with its Pareto front, tuning-set size,
    model size, NMI. Of each study: learning curves, accuracy against each parameter, init strategy by number of images,
    parallel coordinates, importances.
    """
    from orchestrator.figures.draw import draw_figures, save_figure
    from orchestrator.report.results_table import published_scores
    from orchestrator.study.importance import param_importances

    studies = load_combinable_sweeps(home, sweeps, epochs=True)
    # The figures of a single study are those of the sweep.
    is_single = len(studies) == 1
    published = published_scores({study.plan.backbone for study in studies})
    folder = output_path(out, f"{studies[0].spec.name}-figures")
    count = 0
    with console.status("drawing"):
        drawn = draw_figures(
            studies, published=published, importances=param_importances, each_study=each_study or is_single
        )
        for stem, figure in drawn:
            try:
                png, _ = save_figure(figure, folder, stem)
            except OSError as error:
                raise not_written(error) from None
            console.print(f"{png}")
            count += 1
    if not count:
        raise UserError(f"{', '.join(sweeps)}: no trial is finished, so there is nothing to draw.")
    console.print(f"{counted(count, 'figure')}, each as .png and .pdf")


def export(sweeps: SweepsArgument, home: HomeOption = None, out: OutOption = None) -> None:
    """Write trials.parquet, epochs.parquet and predictions.parquet. Their schemas describe each column."""
    from orchestrator.report.export import export_studies as write

    place, _, first = find_sweep(home, sweeps[0])
    studies = load_sweeps(home, sweeps, epochs=True)
    with console.status("writing"):
        try:
            files, absent = write(studies, place.trials_folder, output_path(out, f"{first.name}-export"))
        except OSError as error:
            raise not_written(error) from None
    for file in files:
        console.print(f"{file}")
    if absent:
        where = f"in {place.trials_folder(first.name)}" if len(sweeps) == 1 else "with their sweeps"
        console.print(f"no predictions of {counted(absent, 'complete trial')} {where}")


def register(
    sweep: SweepArgument,
    where: WhereOption = None,
    name: Annotated[str | None, typer.Option(help="Name of the model; default: sweep, task and method.")] = None,
    home: HomeOption = None,
) -> None:
    """Add a study's model to MLflow's registry: the final trial of the first seed, or the one that `--where` selects.

    The seed with the best test accuracy is not offered: that would be choosing on test.
    """
    from orchestrator.study.study import load_studies
    from orchestrator.tracking.mlflow_registry import register as register_model

    place, database, spec = find_sweep(home, sweep)
    selected = first_final_trials(spec.name, load_studies(spec, database, epochs=False), where)
    if name is not None and len(selected) > 1:
        names = ", ".join(study_text(study.plan) for study, _ in selected[:4])
        raise UserError(f"--name is for one study, and {len(selected)} match: {names}. Select one with --where.")

    for study, trial in selected:
        # The registry needs the run's artifacts, which are logged when the trial has ended.
        run_id, synced_state = study.final_table.synced_run(trial.number)
        if run_id is None or synced_state is None:
            command = f"sptune sync {shlex.quote(sweep)}{repeated_home(home)}"
            raise UserError(f"{trial.trial_id} is not in MLflow yet; `{command}` logs it.")

        model = name or _model_name(study)
        version = register_model(place, run_id, model)
        console.print(f"models:/{model}/{version}  {study_text(study.plan)}, seed {trial.config.seed}")


def output_path(out: Path | None, default: str) -> Path:
    """Return the file or folder to write, with `~` expanded: the shell leaves it in `--out=~/figures`."""
    try:
        return (out or Path(default)).expanduser()
    except RuntimeError:
        raise UserError(f"--out {out}: there is no user of this name; write the path in full.") from None


def _model_name(study: Study) -> str:
    plan = study.plan
    # MLflow refuses slashes and spaces in names of models.
    draw = f"-draw-{plan.draw}" if plan.draw else ""
    text = f"{study.spec.name}-{plan.task}-{plan.method}-{plan.backbone}-{plan.train_size}{draw}"
    return re.sub(r"[^\w.-]+", "-", text)


def not_written(error: OSError) -> UserError:
    """Return the error as one sentence. The errors of pyarrow name the file in their reason."""
    reason = str(error.strerror or error).rstrip(".")
    return UserError(f"{error.filename}: {reason}." if error.filename else f"{reason}.")
