"""The command `sptune`."""

from __future__ import annotations

import functools
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from orchestrator import data_cli
from orchestrator.errors import HomeError, SpecError, UserError
from orchestrator.home import DEFAULT_HOME, Home, Workplace, home_at
from orchestrator.plan import size_text, studies
from orchestrator.spec import Grid, SweepSpec, task_names
from orchestrator.spec_file import find_spec, load_spec, parse_spec
from trainer.catalog import BACKBONES
from trainer.data.store import find_card
from trainer.weights import WeightsError, find_weights

if TYPE_CHECKING:
    from orchestrator.search import Record
    from orchestrator.sweep import StudySummary

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Sweeps of Self-Prompt Tuning on frozen ViTs. Start with **sptune launch demo**.",
)
app.add_typer(data_cli.app, name="data")
console = Console()

SpecArgument = Annotated[str, typer.Argument(metavar="SPEC", help="A YAML file, or the name of one that ships: demo.")]
SweepArgument = Annotated[str, typer.Argument(metavar="SWEEP", help="The `name` in its spec.")]
HomeOption = Annotated[
    Path, typer.Option("--home", envvar="SPTUNE_HOME", help="Folder of records, MLflow database, tasks, checkpoints.")
]
InlineOption = Annotated[bool, typer.Option("--inline", help="One trial at a time in this process, without Ray.")]
AddressOption = Annotated[
    str | None, typer.Option(help="A running Ray cluster; default: a Ray of this machine.", envvar="RAY_ADDRESS")
]
WeightsOption = Annotated[
    str | None,
    typer.Option(
        envvar="SPTUNE_WEIGHTS", help="A file, or a folder of files, with backbones' weights; else timm's hub."
    ),
]


@app.command()
def plan(spec: SpecArgument) -> None:
    """Show the studies and trials a spec leads to; start nothing."""
    sweep = load_spec(find_spec(spec))
    plans = studies(sweep)
    table = Table(box=None, pad_edge=False)
    for name in ("task", "method", "backbone", "size", "trials", "final"):
        table.add_column(name, justify="right" if name in ("trials", "final") else "left", no_wrap=True)
    for study in plans:
        counts = (str(sweep.search.trials), str(len(sweep.final.seeds)))
        table.add_row(study.task, study.method, study.backbone, size_text(study.train_size), *counts)
    console.print(table)
    for method in sweep.methods:
        searched = ", ".join(sweep.params_of(method)[1]) or "nothing"
        console.print(f"{method} searches {searched}", highlight=False)
    trials, finals = len(plans) * sweep.search.trials, len(plans) * len(sweep.final.seeds)
    console.print(
        f"{len(plans)} studies, {trials} search trials, {finals} final trials, "
        f"each on {sweep.resources.cpus} CPU and {sweep.resources.gpus:g} GPU",
        highlight=False,
    )


@app.command()
def launch(
    spec: SpecArgument,
    home: HomeOption = DEFAULT_HOME,
    inline: InlineOption = False,
    address: AddressOption = None,
    weights: WeightsOption = None,
) -> None:
    """Run a sweep to its table; started again after anything, it goes on where it was."""
    problems: list[str] = []
    sweep = None
    path = find_spec(spec)
    try:
        sweep = load_spec(path, functools.partial(missing, home=home_at(home), weights=weights))
    except SpecError as error:
        problems += error.problems
    try:
        home_at(home).make()
    except HomeError as error:
        problems.append(str(error))
    if problems or sweep is None:
        raise SpecError(str(path), problems)
    _run(sweep, home_at(home), inline, address, weights)


@app.command()
def resume(
    sweep: SweepArgument,
    home: HomeOption = DEFAULT_HOME,
    inline: InlineOption = False,
    address: AddressOption = None,
    weights: WeightsOption = None,
) -> None:
    """Go on with a sweep by its name; the record holds its spec."""
    spec = _recorded(home_at(home), sweep)[1]
    if problems := missing(spec, home_at(home), weights):
        raise SpecError(f"the recorded spec of {sweep}", problems)
    _run(spec, home_at(home), inline, address, weights)


@app.command()
def status(sweep: SweepArgument, home: HomeOption = DEFAULT_HOME) -> None:
    """Show how far a sweep is, from any terminal."""
    from orchestrator.live import progress_table

    console.print(progress_table(_summaries(*_recorded(home_at(home), sweep))))


@app.command()
def report(sweep: SweepArgument, home: HomeOption = DEFAULT_HOME) -> None:
    """Print the table of test accuracies and the chosen parameters."""
    _print_report(_summaries(*_recorded(home_at(home), sweep)))


@app.command()
def backbones(weights: WeightsOption = None) -> None:
    """List the backbones and where each one's weights would come from."""
    if weights and not Path(weights).expanduser().exists():
        raise UserError(f"weights {weights}: there is no such file or folder.")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("backbone", no_wrap=True)
    for name in ("layers", "width", "patch"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("weights", overflow="fold")
    for row in BACKBONES.values():
        try:
            source = str(find_weights(row, weights))
        except WeightsError:
            source = "absent: name a file"
        table.add_row(row.name, *map(str, (row.num_layers, row.embed_dim, row.patch_size)), source)
    console.print(table)


@app.command()
def predict(
    trial: Annotated[str, typer.Argument(metavar="TRIAL", help="Its id or the first letters of it, or its folder.")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.")],
    home: HomeOption = DEFAULT_HOME,
    weights: WeightsOption = None,
    top: Annotated[int, typer.Option(min=1, help="Classes shown of each image.")] = 3,
) -> None:
    """Classify images with what a finished trial learnt."""
    import trainer

    if missing := [str(image) for image in images if not image.is_file()]:
        raise UserError(f"there is no file {', '.join(missing)}.")
    try:
        classifier = trainer.load(home_at(home).trial_folder(trial), weights=weights)
        for image, found in zip(images, classifier.classify(images, top), strict=True):
            shown = "  ".join(f"{each.class_name} {100 * each.confidence:.1f} %" for each in found)
            console.print(f"{image}: {shown}", highlight=False, soft_wrap=True)
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from None


@app.command()
def ui(
    home: HomeOption = DEFAULT_HOME,
    port: Annotated[int, typer.Option(help="Port on the loopback address.")] = 5000,
) -> None:
    """Open the MLflow server of a home on this machine, at 127.0.0.1; Ctrl-C ends it."""
    place = home_at(home)
    if "MLFLOW_TRACKING_URI" in os.environ:
        raise UserError(f"MLflow is served at MLFLOW_TRACKING_URI={place.mlflow_uri}: open that address.")
    if not (place.folder / "mlflow.db").exists():
        raise UserError(f"{place.folder} has no MLflow database yet; run `sptune launch demo --home {home}` first.")
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise UserError(f"port {port} is taken, perhaps by another `sptune ui`; choose one with --port.")
    console.print(f"MLflow at http://127.0.0.1:{port} for {place.folder}; Ctrl-C ends it.", highlight=False)
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", place.mlflow_uri, "--workers", "1"]
    os.execv(sys.executable, [*command, "--host", "127.0.0.1", "--port", str(port)])


def missing(spec: Grid, home: Home, weights: str | None) -> list[str]:
    """A sentence for each task that is not in the store, and each backbone whose weights are nowhere."""
    tasks = dict.fromkeys(task for name in spec.tasks for task in task_names(name) if not task.startswith("demo/"))
    absent = ", ".join(task for task in tasks if find_card(home.data_root, task) is None)
    where = f"not in the task store {home.data_root}; `sptune data list` says where to get what is missing."
    problems = [f"tasks: {absent}: {where}"] if absent else []
    for name in spec.backbones:
        try:
            find_weights(BACKBONES[name], weights)
        except WeightsError as error:
            problems.append(f"backbones: {error}")
    return list(dict.fromkeys(problems))


def _run(spec: SweepSpec, home: Home, inline: bool, address: str | None, weights: str | None) -> None:
    from orchestrator.live import LiveView
    from orchestrator.sweep import Sweep
    from orchestrator.tracking import MlflowTracker

    tracker = MlflowTracker(home.mlflow_uri, spec.name, home.trials(spec.name), home.mlflow_artifacts)
    sweep = Sweep(spec, _record(home), tracker)
    workplace = Workplace(
        data_root=home.data_root,
        trials=home.trials(spec.name),
        bank=home.bank,
        weights=weights and str(Path(weights).expanduser().absolute()),
        cpus=spec.resources.cpus,
        gpus=spec.resources.gpus,
    )
    try:
        if sweep.done:
            console.print(f"{spec.name} is finished; nothing to run.", highlight=False)
        elif inline:
            from orchestrator import inline as driver

            with LiveView(sweep, console) as update:
                driver.drive(sweep, workplace, update)
        else:
            from orchestrator import ray_driver

            with LiveView(sweep, console) as update:
                ray_driver.drive(sweep, workplace, update, address)
    except KeyboardInterrupt:
        console.print(f"stopped; `sptune resume {spec.name}` goes on from the last finished epochs.", highlight=False)
        raise typer.Exit(130) from None
    finally:
        if untold := tracker.close():
            console.print(f"MLflow did not answer ({tracker.problem}): {untold} trials are told at the next launch.")
    summaries = sweep.summaries()
    _print_report(summaries)
    console.print(f"\nEvery trial in MLflow: sptune ui --home {_short(home.folder)}", highlight=False, soft_wrap=True)
    if any(not summary.finals for summary in summaries):
        raise typer.Exit(1)


def _record(home: Home) -> Record:
    from orchestrator.search import Record

    return Record(f"sqlite:///{home.record_file}")


def _recorded(home: Home, name: str) -> tuple[Record, SweepSpec]:
    """The record, and the spec in it of a sweep."""
    if not home.record_file.exists():
        raise UserError(f"{home.folder} holds no sweep; start one with `sptune launch demo`, or give its --home.")
    record = _record(home)
    specs = record.sweeps()
    if name not in specs:
        raise UserError(f"there is no sweep {name!r} in {home.folder}; there are: {', '.join(specs) or 'none'}.")
    return record, parse_spec(specs[name], f"the recorded spec of {name}")


def _summaries(record: Record, spec: SweepSpec) -> list[StudySummary]:
    from orchestrator.sweep import Study

    return [Study(spec, study, record).summary() for study in studies(spec)]


def _print_report(summaries: list[StudySummary]) -> None:
    from orchestrator.report import chosen_table, footer, result_table

    for part in (result_table(summaries), footer(summaries), chosen_table(summaries)):
        console.print(part, highlight=False)
    failed = [trial for summary in summaries for trial in summary.failed]
    for trial in failed[:5]:
        sentence = str(trial.error).splitlines()[0]
        console.print(f"[red]failed[/red] {trial.study}, {trial.phase} {trial.number}: {sentence}", highlight=False)


def _short(folder: Path) -> str:
    return os.path.relpath(folder) if folder.is_relative_to(Path.cwd()) else str(folder)


def main() -> None:
    """Entry point: a user's mistake is its text on standard error and exit status 2, not a stack trace."""
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
