"""Trials in a process of their own, with the seconds of their stages. `trials.py` and `sweeps.py` start this process.

`python -m tests.benchmarks.alone` reads JSON with `how` (cold, warm or published), `configs`, `started` (the clock when
the process was started), `data`, `folder`, `device`, and optionally `cpus` and `first_step` (whether a trial stops
after its first step). It writes one line of JSON for each trial that ended.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import resource
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

Found = dict[str, Any]
STAGES = {
    "loop": {
        "load_backbone": "weights",
        "open_task": "images",
        "load_split": "images",
        "initial_prompt": "prototypes",
        "build_model": "model",
        "TrainingStep": "model",
    },
    "feature_cache": {"frozen_features": "forward"},
    "evaluation": {"evaluate_in_batches": "forward"},
    "run": {"pack_state": "files", "load_state": "files"},
}
"""Stages of a trial by the functions that modules of `trainer.training` call for them."""


class Stopwatch:
    """Seconds of the stages of a trial, in all and before its first training step.

    It replaces functions that the training loop calls by timed ones.
    """

    def __init__(self) -> None:
        from trainer.training import step

        self._began = time.perf_counter()
        self._spent: dict[str, float] = defaultdict(float)
        self._first: tuple[float, dict[str, float]] | None = None
        for module, functions in STAGES.items():
            for function, stage in functions.items():
                self.time(importlib.import_module(f"trainer.training.{module}"), function, stage)
        backward = vars(step)["backward"]

        def noted(*args: Any) -> Any:
            if self._first is None:
                self._first = self._since(), dict(self._spent)
            return backward(*args)

        vars(step)["backward"] = noted

    def start(self) -> None:
        """Start timing a trial."""
        self._began = time.perf_counter()
        self._first = None
        self._spent.clear()

    def begun(self) -> bool:
        """Return whether the first step has begun."""
        return self._first is not None

    def read(self) -> Found:
        """Return the seconds since the start of the trial."""
        assert self._first is not None, "a trial takes at least one step"
        first_step_s, before = self._first
        return {"first step": first_step_s, "before": before, "stages": dict(self._spent), "seconds": self._since()}

    def time(self, module: ModuleType, name: str, stage: str) -> None:
        """Count the seconds of a function of a module as those of a stage."""
        function: Callable[..., Any] = getattr(module, name)

        @functools.wraps(function, updated=())
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = self._since()
            try:
                return function(*args, **kwargs)
            finally:
                self._spent[stage] += self._since() - began

        setattr(module, name, timed)

    def _since(self) -> float:
        import torch

        if torch.cuda.is_initialized():
            # A stage waits for the work that it gave the device.
            torch.cuda.synchronize()

        return time.perf_counter() - self._began


def cold(asked: Found) -> Iterator[Found]:
    """Run one trial as `python -m trainer --out FOLDER` does. Its seconds count from the start of the process."""
    # All that the command imports.
    import trainer.__main__  # noqa: F401
    from trainer.config import TrainConfig
    from trainer.training.loop import TrainingInterrupted, train

    imported_s = time.time() - asked["started"]
    watch = Stopwatch()
    metrics: dict[str, float] = {}
    (config,) = asked["configs"]
    stop = watch.begun if asked.get("first_step") else (lambda: False)
    options = {"data_root": asked["data"], "folder": f"{asked['folder']}/cold", "device": asked["device"]}

    with contextlib.suppress(TrainingInterrupted):
        for epoch in train(TrainConfig(**config), **options, stop=stop):
            metrics = epoch.metrics

    # Imports come before the stages that the stopwatch measured.
    measured = watch.read()
    before = {"imports": imported_s} | measured["before"]
    seconds = {name: imported_s + measured[name] for name in ("first step", "seconds")}
    yield measured | seconds | {"before": before, "metrics": metrics}


def published(asked: Found) -> Iterator[Found]:
    """Run one trial as the published scripts do."""
    from tests.benchmarks.published import train_as_published
    from trainer.config import TrainConfig

    (config,) = asked["configs"]
    *_, last = train_as_published(
        TrainConfig(**config),
        data_root=asked["data"],
        folder=Path(asked["folder"]) / "published",
        device=asked["device"],
        num_workers=os.cpu_count() or 1,
    )
    yield {"seconds": time.time() - asked["started"], "metrics": last}


def warm(asked: Found) -> Iterator[Found]:
    """Run trials one after another as a worker of a sweep does. Each result has the memory of the process after it."""
    import psutil
    import torch

    from trainer.config import TrainConfig
    from trainer.model.device_memory import reset_peak_memory
    from trainer.plots import run_plots as pictures
    from trainer.training.loop import TrainingInterrupted, train

    torch.set_num_threads(asked.get("cpus") or os.cpu_count() or 1)
    folder, places = asked["folder"], {"data_root": asked["data"], "device": asked["device"]}
    watch, process = Stopwatch(), psutil.Process()
    watch.time(pictures, "draw_run_plots", "pictures")
    stop = watch.begun if asked.get("first_step") else (lambda: False)
    for fields in asked["configs"]:
        watch.start()
        reset_peak_memory(asked["device"])
        config, epochs = TrainConfig(**fields), []
        own = f"{folder}/trials/{config.fingerprint()}"
        with contextlib.suppress(TrainingInterrupted):
            for epoch in train(config, **places, folder=own, prototype_cache=f"{folder}/bank", stop=stop):
                epochs.append(epoch.metrics)
            pictures.draw_run_plots(config, epochs, own, **places, prototype_cache=f"{folder}/bank")
        metrics = epochs[-1] if epochs else {}
        yield watch.read() | {"metrics": metrics, "resident MB": process.memory_info().rss / 1e6}


WAYS = {"cold": cold, "published": published, "warm": warm}


def environment_of(folder: Path, cache: str) -> dict[str, str]:
    """Return the environment of a process that shares nothing with earlier ones but the files of the folder."""
    foreign = ("SPTUNE_", "RAY_", "TUNE_", "MLFLOW_")
    own = {"SPTUNE_CACHE": cache, "SPTUNE_DATA": f"{folder}/data", "MLFLOW_DISABLE_TELEMETRY": "true"}
    own |= {"RAY_ADDRESS": "local", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(Path(__file__).parents[2])}
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)} | own


def trials_alone(
    how: str, configs: Sequence[Mapping[str, Any]], environment: dict[str, str], **more: Any
) -> Iterator[Found]:
    """Start such a process, and yield its result of each trial.

    Raises:
        RuntimeError: if the process fails, with the end of its log.
    """
    request = {"how": how, "configs": [dict(config) for config in configs], **more}
    with Path(more["folder"], f"{how}.log").open("w+") as log:
        command = [sys.executable, "-m", "tests.benchmarks.alone"]
        with subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        ) as process:
            assert process.stdin is not None and process.stdout is not None, "both are pipes"

            process.stdin.write(json.dumps(request | {"started": time.time()}))
            process.stdin.close()

            for line in process.stdout:
                if line.startswith("{"):
                    yield json.loads(line)
        if process.returncode:
            log.seek(0)
            raise RuntimeError(f"the process of the {how} trials failed:\n{log.read()[-4000:]}")


def main() -> None:
    """Run the requested trials."""
    asked = json.load(sys.stdin)
    for result in WAYS[asked["how"]](asked):
        # Linux counts in KiB.
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
        print(json.dumps(result | {"peak MB": peak_mb}), flush=True)


if __name__ == "__main__":
    main()
