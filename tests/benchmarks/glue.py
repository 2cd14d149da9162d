"""One sweep by `sptune launch`, and by stock glue: a script with Ray Tune's own parts around the same training.

python -m tests.benchmarks.glue                   four studies of 6 search and 2 final trials, one side after the other
python -m tests.benchmarks.glue --reuse-actors    a third run: the glue with the one option that helps it most

For each study, the glue has a `tune.Tuner` with OptunaSearch, ASHA and MLflowLoggerCallback, and a second one that
repeats the best params over the seeds. Everything else is left at its default: a new actor for every trial, and the
CSV, JSON and TensorBoard loggers.

The same on both sides:
- the machine; a Ray with two CPUs, which each side starts and ends in a process that is timed as a whole; one CPU and
  one torch thread per trial; two trials of a study at once
- tasks, methods, space, numbers of trials and epochs, and ASHA's min_epochs and reduction
- TPE with its 10 random trials and seed 0. So the 6 trials of a study are random draws, and not the same ones on both
  sides: comparing accuracies would mean nothing
- MLflow in an SQLite database, images decoded beforehand, and a prototype cache that is empty at the start

What differs, apart from what is measured:
- ours writes a checkpoint per epoch, a study database, and each trial's prompt, predictions and log, and logs them to
  MLflow as artifacts; the glue keeps none of this
- ours runs all studies as one sweep, so a core without a trial of one study takes one of another; in the glue, as in
  such scripts, a study waits for the one before
- the trials that ASHA stops depend on the draws and on which trial reports first: compare the epochs trained

Both sides keep the CPUs busy. If other programs use the machine too, compare CPU seconds rather than wall time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from orchestrator.spec.loader import load_spec
from orchestrator.spec.plan import StudyPlan, plan_sweep
from orchestrator.spec.schema import Asha, SweepSpec
from orchestrator.spec.space import Choice, Dimension, FloatRange
from trainer.config import TrainConfig

CPUS = 2


# The glue, in a process of its own.


def train_one(config: dict[str, Any], plan: StudyPlan, search_seed: int, folder: str) -> None:
    """Train one trial as Tune's trainable: a search trial, or a final one if its config has a seed."""
    import torch
    from ray import tune

    from trainer.training.loop import train

    torch.set_num_threads(1)
    params = {name: value for name, value in config.items() if name != "seed"}
    seed = config.get("seed")
    train_config = plan.search_config(params, search_seed) if seed is None else plan.final_config(params, seed)
    for epoch in train(train_config, data_root=os.environ["SPTUNE_DATA"], prototype_cache=f"{folder}/prototypes"):
        tune.report(epoch.metrics)


def tune_space(dimension: Dimension) -> Any:
    """Return a dimension as Tune describes it."""
    from ray import tune

    if isinstance(dimension, Choice):
        return tune.choice(dimension.values)
    assert isinstance(dimension, FloatRange) and dimension.log, "the space below has no other"
    return tune.loguniform(dimension.low, dimension.high)


def run_glue(spec: SweepSpec, folder: Path, reuse_actors: bool) -> tuple[int, int]:
    """Run every study of the spec, and return the numbers of trials and epochs trained."""
    import ray
    from ray import tune
    from ray.air.integrations.mlflow import MLflowLoggerCallback
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    def fit(plan: StudyPlan, space: dict[str, Any], **tune_options: Any) -> Any:
        callback = MLflowLoggerCallback(tracking_uri=f"sqlite:///{folder}/mlflow.db", experiment_name=plan.key)
        results = tune.Tuner(
            tune.with_parameters(train_one, plan=plan, search_seed=spec.search.seed, folder=str(folder)),
            param_space=space,
            tune_config=tune.TuneConfig(max_concurrent_trials=CPUS, reuse_actors=reuse_actors, **tune_options),
            run_config=tune.RunConfig(storage_path=str(folder / "results"), callbacks=[callback]),
        ).fit()
        if results.errors:
            raise results.errors[0]
        return results

    ray.init(num_cpus=CPUS)
    all_metrics = []
    pruner = spec.search.pruner
    assert isinstance(pruner, Asha)
    for plan in plan_sweep(spec).studies:
        searched = fit(
            plan,
            {name: tune_space(dimension) for name, dimension in plan.space.items()},
            metric="val/accuracy",
            mode="max",
            search_alg=OptunaSearch(seed=spec.search.seed),
            scheduler=ASHAScheduler(
                max_t=plan.epochs, grace_period=pruner.min_epochs, reduction_factor=pruner.reduction
            ),
            num_samples=spec.search.trials,
        )
        best = searched.get_best_result().config
        finals = fit(plan, best | {"seed": tune.grid_search(spec.final.seeds)})
        all_metrics += [result.metrics for results in (searched, finals) for result in results]

    return len(all_metrics), sum(metrics["training_iteration"] for metrics in all_metrics)


# The measurement.


def spec_text(options: argparse.Namespace) -> str:
    """Return the spec of the sweep. All prompts have the same length, so that all epochs of a study cost the same."""
    return f"""
name: glue
tasks: {json.dumps(options.tasks)}
backbones: [vit_nano_patch4_32.mae]
methods: {json.dumps(options.methods)}
fixed: {{epochs: {options.epochs}, warmup_epochs: 1, batch_size: 32, prompt_length: 10}}
space:
  lr:                {{type: float, low: 5.0e-3, high: 5.0e-2, log: true}}
  weight_decay:      {{type: float, low: 1.0e-4, high: 1.0e-2, log: true}}
  head_weight_decay: {{type: float, low: 1.0e-2, high: 1.0, log: true}}
  prompt_init:       {{type: choice, values: [random, mean_pool, max_pool, kmeans]}}
search: {{trials: {options.trials}, max_concurrent: {CPUS}, pruner: {{type: asha, min_epochs: 2, reduction: 2}}}}
final: {{seeds: {[*range(42, 42 + options.finals)]}}}
"""


def decode(spec: SweepSpec, data_root: str, cache: str) -> None:
    """Train once on the splits of each task, so that neither side has to decode the images."""
    from trainer.training.loop import train

    for task in spec.tasks:
        for eval_split in ("val", "test"):
            params = {"task": task, "method": "linear", "epochs": 1, "warmup_epochs": 0, "eval_split": eval_split}
            list(train(TrainConfig.from_params(params), data_root=data_root, cache=cache))


def timed(command: list[str], folder: Path, environment: dict[str, str]) -> tuple[float, float]:
    """Run a command in a folder, and return its seconds and the CPU seconds of all its processes.

    Its output goes to log.txt in the folder.
    """
    # The CPU seconds of each process when it was last seen.
    used: dict[int, float] = {}
    started = time.perf_counter()
    with (folder / "log.txt").open("w") as log:
        running = psutil.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
        while running.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired, psutil.Error):
                for process in [running, *running.children(recursive=True)]:
                    used[process.pid] = sum(process.cpu_times()[:2])
                running.wait(timeout=0.5)

    if running.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{(folder / 'log.txt').read_text()[-4000:]}")
    return time.perf_counter() - started, sum(used.values())


def measures(seconds: float, busy: float, trials: int, epochs: int, folder: Path) -> dict[str, float]:
    """Return the measurements of a side."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, max_results=10_000)

    rates = {"s per trial": seconds / trials, "epochs": epochs, "s per epoch": seconds / epochs}
    return {"wall s": seconds, "CPU s": busy, "trials": trials} | rates | {"MLflow runs": len(runs)}


def ours(spec: SweepSpec, folder: Path, environment: dict[str, str]) -> dict[str, float]:
    """Launch the sweep as a user does, and read its study database."""
    from orchestrator.study.storage.database import StudyDatabase
    from orchestrator.study.study import load_studies

    program = str(Path(sys.executable).with_name("sptune"))
    took = timed([program, "launch", str(folder / "spec.yaml"), "--home", str(folder)], folder, environment)
    studies = load_studies(spec, StudyDatabase(f"sqlite:///{folder}/studies.db"))
    assert all(study.is_done and not study.summary().failed_trials for study in studies)
    trials = [trial for study in studies for trial in study.trials]
    return measures(*took, len(trials), sum(len(trial.epochs) for trial in trials), folder)


def stock(folder: Path, environment: dict[str, str], *more: str) -> dict[str, float]:
    """Run the glue, and read its counts."""
    took = timed([sys.executable, "-m", "tests.benchmarks.glue", "--stock", str(folder), *more], folder, environment)
    trials, epochs = json.loads((folder / "counted.json").read_text())
    return measures(*took, trials, epochs, folder)


def main() -> None:
    """Run both sides, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["demo/digits", "demo/shapes_loc"])
    parser.add_argument("--methods", nargs="+", default=["spt_deep", "linear"])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--trials", type=int, default=6, help="search trials of a study")
    parser.add_argument("--finals", type=int, default=2, help="final trials of a study")
    parser.add_argument("--reuse-actors", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--stock", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()

    # The process of the stock side.
    if options.stock:
        counts = run_glue(load_spec(options.stock / "spec.yaml"), options.stock, options.reuse_actors)
        (options.stock / "counted.json").write_text(json.dumps(counts))
        return

    with tempfile.TemporaryDirectory(prefix="sptune-glue-") as folder:
        homes = [Path(folder, name) for name in ("ours", "stock", "reused")]
        for home in homes:
            home.mkdir()
            (home / "spec.yaml").write_text(spec_text(options))
        spec = load_spec(homes[0] / "spec.yaml")
        foreign = ("SPTUNE_", "RAY_", "TUNE_", "MLFLOW_")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)} | {
            "SPTUNE_DATA": f"{folder}/data",
            "SPTUNE_CACHE": f"{folder}/cache",
            # Not a cluster that is running on this machine.
            "RAY_ADDRESS": "local",
            "RAY_OVERRIDE_RESOURCES": json.dumps({"CPU": CPUS, "GPU": 0}),
            "RAY_USAGE_STATS_ENABLED": "0",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        decode(spec, environment["SPTUNE_DATA"], environment["SPTUNE_CACHE"])
        sides = {"ours": ours(spec, homes[0], environment), "stock": stock(homes[1], environment)}
        if options.reuse_actors:
            sides["stock, actors reused"] = stock(homes[2], environment, "--reuse-actors")
    table = Table(
        "", *sides["ours"], title=f"studies: {len(plan_sweep(spec).studies)}; cores: {CPUS} of {os.cpu_count()}"
    )
    for name, measured in sides.items():
        table.add_row(name, *(f"{value:.3g}" if value < 100 else f"{value:.0f}" for value in measured.values()))
    Console(width=110).print(table)
    ratios = {
        f"{name} / ours, {measure}": measured[measure] / sides["ours"][measure]
        for name, measured in sides.items()
        for measure in ("wall s", "CPU s", "s per epoch")
        if name != "ours"
    }
    print("\n".join(f"{name}: {ratio:.2f}" for name, ratio in ratios.items()))
    if options.json:
        options.json.write_text(json.dumps({"sides": sides, "ratios": ratios}, indent=2))


if __name__ == "__main__":
    main()
