"""A sweep of 24 trials on one machine, in three ways: the part `sweep` of `trials.py`."""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from orchestrator.spec.loader import load_spec
from orchestrator.study.storage.database import StudyDatabase
from orchestrator.study.study import Study, load_studies
from orchestrator.study.trial import Trial
from tests.benchmarks.alone import Found, environment_of, trials_alone

CONSOLE = Console(width=110)
SPACE = """
  lr:                {type: float, low: 5.0e-3, high: 5.0e-2, log: true}
  weight_decay:      {type: float, low: 1.0e-4, high: 1.0e-2, log: true}
  head_weight_decay: {type: float, low: 1.0e-2, high: 1.0, log: true}
  prompt_init:       {type: choice, values: [random, mean_pool, max_pool, kmeans]}
"""


def spec_text(name: str, pruner: str, options: argparse.Namespace) -> str:
    """Return the spec of the sweep. The last trial of each study is final. All prompts have the same length."""
    searched = options.sweep_trials // len(options.sweep_tasks) - 1
    epochs = options.sweep_epochs
    gpus = "auto" if options.device != "cpu" else 0
    return f"""
name: {name}
tasks: [{", ".join(options.sweep_tasks)}]
backbones: [{options.backbones[0]}]
methods: [spt_deep]
fixed: {{epochs: {epochs}, warmup_epochs: {epochs // 10}, batch_size: 32, prompt_length: 20}}
space: {SPACE}
search: {{trials: {searched}, pruner: {pruner}}}
final: {{seeds: [42]}}
resources: {{cpus: 1, gpus: {gpus}}}
"""


def launch(name: str, pruner: str, options: argparse.Namespace, folder: Path) -> tuple[Found, list[Study]]:
    """Run the sweep as a user does, without decoded images or prototypes."""
    from tests.benchmarks.glue import timed

    home = folder / name
    home.mkdir()
    (home / "spec.yaml").write_text(spec_text(name, pruner, options))
    command = [str(Path(sys.executable).with_name("sptune")), "launch", f"{home}/spec.yaml", "--home", str(home)]
    environment = environment_of(folder, f"{home}/cache")
    # Ray sets the threads of each worker.
    environment.pop("OMP_NUM_THREADS", None)

    seconds, cpu_s = timed(command, home, environment)
    studies = load_studies(load_spec(home / "spec.yaml"), StudyDatabase(f"sqlite:///{home}/studies.db"))
    assert all(study.is_done and not study.summary().failed_trials for study in studies), (
        "the sweep ended without failed trials"
    )
    trials = [trial for study in studies for trial in (*study.requested_search_trials, *study.requested_final_trials)]

    results: Found = {"seconds": seconds, "CPU s": cpu_s, "epochs": sum(len(trial.epochs) for trial in trials)}
    results |= {"test": statistics.mean(study.requested_final_trials[0].score or 0.0 for study in studies)}
    return results | {"trials": len(trials), "pruned": sum(trial.score is None for trial in trials)}, studies


def train_published(trial: Trial, options: argparse.Namespace, folder: Path) -> tuple[float, float, float | None]:
    """Train a trial's config by the published recipe; return its seconds, its score there, and its score with us."""
    trial_folder = tempfile.mkdtemp(prefix="published", dir=folder)
    environment = environment_of(folder, f"{trial_folder}/cache")

    started = time.perf_counter()
    (result,) = trials_alone(
        "published",
        [dataclasses.asdict(trial.config)],
        environment,
        folder=trial_folder,
        data=f"{folder}/data",
        device=options.device,
    )
    seconds = time.perf_counter() - started

    CONSOLE.print(f"published, {trial.study}, {trial.phase} trial {trial.number}: {seconds:.1f} s")
    return seconds, result["metrics"][trial.config.eval_metric], trial.score


def sweep(options: argparse.Namespace, folder: Path) -> Found:
    """Run the same trials by the published recipe and by us, and by us with a pruner."""
    asha = f"{{type: asha, min_epochs: {max(1, options.sweep_epochs // 10)}}}"

    # Alternate the sides: the speed of a machine may change.
    slow, studies = launch("whole", "{type: none}", options, folder)
    CONSOLE.print(f"launch, no pruner: {slow['seconds']:.0f} s")
    selected = [
        trial
        for study in studies
        for trial in (study.requested_search_trials if options.full else study.requested_search_trials[:4])
    ]
    searched = [train_published(trial, options, folder) for trial in selected[::2]]
    fast, _ = launch("pruned", asha, options, folder)
    CONSOLE.print(f"launch, TPE and ASHA: {fast['seconds']:.0f} s")
    searched += [train_published(trial, options, folder) for trial in selected[1::2]]
    finals = [train_published(study.requested_final_trials[0], options, folder) for study in studies]

    # The seconds of the published trials that were not measured are those of the measured search trials.
    count = slow["trials"]
    measured = [*searched, *finals]
    search_s = statistics.mean(taken for taken, *_ in searched)
    seconds = search_s * (count - len(finals)) + sum(taken for taken, *_ in finals)
    published: Found = {"seconds": seconds, "epochs": count * options.sweep_epochs, "pruned": 0}
    first = "published" if len(measured) == count else f"published ({len(measured)} of {count} measured)"
    rows = {first: published, "launch, no pruner": slow, "launch, TPE and ASHA": fast}

    columns = ("s", "trials/h", "epochs", "pruned", "published / it", "test/accuracy")
    title = f"sweep: {count} trials of {options.backbones[0]}, {len(finals)} of them final"
    table = Table("", *columns, title=title)
    for name, row in rows.items():
        cells = (f"{row['seconds']:.0f}", f"{3600 * count / row['seconds']:,.0f}", row["epochs"], row["pruned"])
        test = f"{row['test']:.3f}" if "test" in row else ""
        table.add_row(name, *map(str, cells), f"{seconds / row['seconds']:.2f}", test)
    CONSOLE.print(table)
    CONSOLE.print(
        f"Of the gain {seconds / fast['seconds']:.2f}, {seconds / slow['seconds']:.2f} is our trials, with every epoch "
        f"trained, and {slow['seconds'] / fast['seconds']:.2f} is pruning, which trains {fast['epochs']} of "
        f"{slow['epochs']} epochs. The seconds of launch include start, search, scoring, MLflow, plots and report."
    )
    theirs, ours = (statistics.mean(scores) for scores in list(zip(*measured, strict=True))[1:])
    CONSOLE.print(f"accuracy of the same params, mean of {len(measured)}: published {theirs:.3f}, ours {ours:.3f}")
    return {"rows": rows, "published seconds and accuracy, our accuracy; final ones last": measured}
