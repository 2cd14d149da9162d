"""Whole trials and sweeps: how soon a trial starts, how long it takes, and how fast a sweep runs many.

python -m tests.benchmarks.trials                     all parts
python -m tests.benchmarks.trials --only start trial  of: start, trial, sweep, busy, memory

start    seconds from the start of a process to the first training step of its trial, and from the call of
         `trainer.training.loop.train` to the first step of the trials after it, with the stages in between.
trial    a trial of the size of VTAB's (demo/digits: 800 + 200 images) from start to result, in three ways: the
         published recipe (`published.py`) in a process of its own; ours in a process of its own, without decoded
         images and prototypes; and ours in the process of an earlier trial with another lr, as all trials of a
         worker but the first. Images per second are the images trained on, over all seconds of the trial. All three
         have all cores. The peak is the memory of the process, not that of a GPU. Only the published side has the
         moving average, which the recipe never evaluates.
sweep    (`sweeps.py`) 24 trials, the last of a study final: by `sptune launch` without a pruner, by `launch` with
         one, and the params of the first sweep by the published recipe, one process per trial, one after another.
busy     (`busy_workers.py`) the fraction of its time that a Ray worker is busy, with 200 short trials in a sweep.
memory   the memory of a process after each of 200 warm trials.

Weights that are not on this machine are replaced by random ones. They cost the same, but learn less.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.table import Table

from tests.benchmarks.alone import Found, environment_of, trials_alone
from tests.benchmarks.machine import default_device, describe, write_json
from tests.benchmarks.sides import BY_SIZE
from trainer.catalog import BACKBONES, BUNDLED, TASKS
from trainer.config import TrainConfig
from trainer.data.tasks import open_task
from trainer.model.backbone import build_vit
from trainer.model.weights import HUB_FILE, WeightsError, find_weights

TASK = "demo/digits"
MARKS = (20, 50, 100, 150, 200)
"""Numbers of trials after which the memory is printed. It should not grow from the second on."""
CONSOLE = Console(width=110)


def config_of(**changes: Any) -> dict[str, Any]:
    """Return the complete config of the benchmark's trial, with changes."""
    params = {"task": TASK, "method": "spt_deep", "prompt_length": 20, "prompt_init": "mean_pool", "lr": 0.01}
    return dataclasses.asdict(TrainConfig.from_params(params | changes))


def put_weights(backbone: str, hub: Path) -> str:
    """Make sure that every process has a backbone's weights without a network, and return where they come from.

    All sides read the Hugging Face cache. Random weights are put into a cache of the benchmark's own.
    """
    from safetensors.torch import save_file

    # Without a connection to the hub, this fails.
    with contextlib.suppress(WeightsError):
        kind = find_weights(BACKBONES[backbone], None).kind
        if kind != "hub":
            return kind

    snapshot = hub / f"models--timm--{backbone}" / "snapshots" / "random"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("random")
    torch.manual_seed(0)
    save_file(build_vit(BACKBONES[backbone]).state_dict(), snapshot / HUB_FILE, metadata={"format": "pt"})
    os.environ["HF_HUB_CACHE"] = str(hub)
    return "random"


# Start.


def start(options: argparse.Namespace, folder: Path) -> Found:
    """Measure how soon the first step of a trial begins."""
    results: Found = {}
    for backbone in options.backbones:
        short = {"backbone": backbone, "epochs": 1, "warmup_epochs": 0}
        settings = {"data": f"{folder}/data", "device": options.device, "cpus": options.threads, "first_step": True}
        linear = {"method": "linear", "prompt_length": None, "prompt_init": None}
        later: dict[str, Found] = {
            "warm, prototypes cached": {"prompt_init": "mean_pool"},
            "warm, new mean_pool": {"prompt_init": "mean_pool", "prompt_length": 5},
            "warm, new kmeans": {"prompt_init": "kmeans"},
            "warm, final (trainval)": {"eval_split": "test", "seed": 43},
            "warm, linear": linear,
            "warm, linear again": linear | {"lr": 0.02},
        }

        # The first trials are new in the worker, second, and the first of `later`, which finds its prototypes.
        configs = [config_of(**short, lr=lr) for lr in (0.01, 0.02, 0.03)]
        configs += [config_of(**short | changes) for changes in list(later.values())[1:]]
        environment = environment_of(folder, fresh(folder, "cache"))

        rows: dict[str, Found] = {}
        for name in ("cold, not decoded", "cold"):
            (rows[name],) = trials_alone("cold", configs[:1], environment, folder=fresh(folder, "cold"), **settings)
            CONSOLE.print(f"{backbone}, {name}: {rows[name]['first step']:.1f} s to the first step")
        warmed = trials_alone("warm", configs, environment, folder=fresh(folder, "warm"), **settings)
        for name, row in zip(("in a new worker", "second", *later), warmed, strict=True):
            CONSOLE.print(f"{backbone}, {name}: {row['first step']:.3f} s to the first step")
            rows[name] = row
        results[backbone] = rows

        stages = ("imports", "weights", "images", "prototypes", "forward", "model")
        table = Table("", "first step, s", *stages, "rest", title=f"start: {backbone}, {options.device}")
        for name, row in rows.items():
            parts = [row["before"].get(stage, 0.0) for stage in stages]
            seconds = [row["first step"], *parts, row["first step"] - sum(parts)]
            table.add_row(name, *(f"{value:.3f}" for value in seconds))
        CONSOLE.print(table)

    return results


def fresh(folder: Path, name: str) -> str:
    """Make a new folder."""
    return tempfile.mkdtemp(prefix=name, dir=folder)


# Trial.


def trial(options: argparse.Namespace, folder: Path) -> Found:
    """Measure a whole trial, in three ways."""
    results: Found = {}
    for backbone in options.backbones:
        epochs = 2 if backbone != BUNDLED and options.device == "cpu" else options.epochs
        params = {"backbone": backbone, "epochs": epochs, "warmup_epochs": epochs // 10}
        settings = {"data": f"{folder}/data", "device": options.device, "cpus": options.threads}
        runs: dict[str, list[Found]] = {"published": [], "ours": [], "ours, warm": []}
        for repeat in range(options.repeats):
            config, earlier = (config_of(**params, seed=42 + repeat, lr=lr) for lr in (0.01, 0.02))
            earlier |= {"epochs": 1, "warmup_epochs": 0}
            for side, how, configs in (
                ("published", "published", [config]),
                ("ours", "cold", [config]),
                ("ours, warm", "warm", [earlier, config]),
            ):
                trial_folder = fresh(folder, how)
                environment = environment_of(folder, f"{trial_folder}/cache")
                *_, last = trials_alone(how, configs, environment, folder=trial_folder, **settings)
                runs[side].append(last)
                CONSOLE.print(f"{backbone}, {side}: {last['seconds']:.1f} s")

        images = TASKS[TASK].num_train // config["batch_size"] * config["batch_size"] * epochs
        seconds = {side: statistics.median(run["seconds"] for run in each) for side, each in runs.items()}
        table = Table(
            *("", "s per trial", "images/s", "published / it", "peak MB", "val/accuracy"),
            title=f"trial: {backbone}, {epochs} epochs",
        )
        for side, each in runs.items():
            accuracy = statistics.mean(run["metrics"]["val/accuracy"] for run in each)
            ratio = seconds["published"] / seconds[side]
            peak_mb = max(run["peak MB"] for run in each)
            values = (f"{seconds[side]:.2f}", f"{images / seconds[side]:,.0f}", f"{ratio:.2f}", f"{peak_mb:,.0f}")
            table.add_row(side, *values, f"{accuracy:.3f}")
        CONSOLE.print(table)

        spent = runs["ours, warm"][-1]["stages"]
        CONSOLE.print("of ours, warm: " + ", ".join(f"{stage} {value:.2f} s" for stage, value in spent.items()))
        results[backbone] = {"epochs": epochs, "images": images, "seconds": seconds, "runs": runs}

    return results


# Memory.


def memory(options: argparse.Namespace, folder: Path) -> Found:
    """Measure the memory of a process after each of many warm trials of all kinds."""
    data = folder / "few"
    open_task(str(data), TASK)

    # Few images, so that trials are short.
    for split in ("val", "test"):
        file = data / f"{TASK}/{split}.parquet"
        pq.write_table(pq.read_table(file)[:20], file)

    trial_folder = fresh(folder, "memory")
    environment = environment_of(folder, f"{trial_folder}/cache")
    settings = {"folder": trial_folder, "data": str(data), "device": options.device, "cpus": 1}
    held = []
    for result in trials_alone("warm", list(kinds(options.trials)), environment, **settings):
        held.append(result["resident MB"])
        if len(held) in MARKS:
            CONSOLE.print(f"{len(held)} trials: {held[-1]:.0f} MB")

    # From the second mark on, the memory should be flat.
    later = range(min(MARKS[1], len(held) // 2), len(held))
    slope = statistics.linear_regression(list(later), [held[i] for i in later]).slope
    table = Table(
        "", *(f"after {mark}" for mark in MARKS if mark <= len(held)), "MB per trial, then", title="memory, MB"
    )
    table.add_row("resident", *(f"{held[mark - 1]:.0f}" for mark in MARKS if mark <= len(held)), f"{slope:+.3f}")
    CONSOLE.print(table)
    return {"resident MB": held, "MB a trial": slope, "from trial": later[0]}


def kinds(trials: int) -> Iterator[Mapping[str, Any]]:
    """Yield configs of small trials, each with other params: all strategies, four lengths, final ones, and linear."""
    inits = ("random", "mean_pool", "max_pool", "kmeans")
    for i in range(trials):
        few: dict[str, Any] = {
            "train_size": 64,
            "epochs": 1,
            "warmup_epochs": 0,
            "batch_size": 16,
            "lr": 1e-4 * (i + 1),
        }
        few |= {"eval_split": "test", "seed": i} if i % 5 == 4 else {}
        few |= {"prompt_init": inits[i % 4], "prompt_length": (1, 2, 5, 10)[i // 4 % 4]}
        if i % 8 == 7:
            few |= {"method": "linear", "prompt_init": None, "prompt_length": None}
        yield config_of(**few)


# Sweeps. Unlike the parts above, they need Ray, Optuna and MLflow.


def sweep(options: argparse.Namespace, folder: Path) -> Found:
    """Measure a whole sweep, in three ways."""
    from tests.benchmarks import sweeps

    return sweeps.sweep(options, folder)


def busy(options: argparse.Namespace, folder: Path) -> Found:
    """Measure how busy the workers of a sweep are."""
    from tests.benchmarks import busy_workers

    return busy_workers.busy(options, folder)


# All.


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the requested parts, and print one table for each."""
    parts = {"start": start, "trial": trial, "sweep": sweep, "busy": busy, "memory": memory}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=parts, default=[*parts])
    parser.add_argument("--backbones", nargs="+", choices=BACKBONES, default=[BUNDLED, BY_SIZE["tiny"]])
    parser.add_argument("--device", default=default_device())
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count(), help="threads of a trial that is alone on the machine"
    )
    parser.add_argument("--epochs", type=int, help="epochs of `trial` (default: 10 on a CPU, 100 on a GPU)")
    parser.add_argument("--repeats", type=int, default=1, help="repeats of `trial`, each with its own seed")
    parser.add_argument("--sweep-epochs", type=int, default=3)
    parser.add_argument("--sweep-tasks", nargs="+", default=[TASK], help="one study per task")
    parser.add_argument("--sweep-trials", type=int, default=24, help="trials of all studies together")
    parser.add_argument("--full", action="store_true", help="`sweep`: all published trials, instead of five per study")
    parser.add_argument("--train", action="store_true", help="`busy`: trials that train, instead of trials that sleep")
    parser.add_argument("--trials", type=int, default=200, help="trials of `busy` and `memory`")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    options.epochs = options.epochs or (10 if options.device == "cpu" else 100)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)

    results: Found = {"machine": describe(options.device)}
    with tempfile.TemporaryDirectory(prefix="sptune-trials-") as name:
        folder = Path(name)
        open_task(f"{folder}/data", TASK)
        for backbone in options.backbones:
            CONSOLE.print(f"{backbone}: {put_weights(backbone, folder / 'hub')} weights")
        for part in options.only:
            # Written after each part, so that an interrupted run keeps its results.
            results[part] = parts[part](options, folder)
            write_json(options.out, results)


if __name__ == "__main__":
    main()
