"""Trials in a process of its own, with the seconds of their stages: what `trials.py` and `sweeps.py` start and time.

`python -m tests.benchmarks.alone` reads a JSON of `how` (cold, warm or published), `configs`, `started` (the clock when
the process was started), `data`, `folder`, `device`, and perhaps `cpus` and `first_step` (whether a trial is stopped
after it); it writes a line of JSON for each trial that ended.
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
        "PromptedViT": "model",
        "build_optimizer": "model",
        "MovingAverage": "model",
    },
    "feature_cache": {"frozen_features": "forward"},
    "evaluation": {"evaluate_in_batches": "forward"},
    "run": {"pack_state": "files", "load_state": "files"},
}
"""Stages of a trial by the functions that modules of `trainer.training` call for them."""


class Stopwatch:
    """Seconds of a trial's stages, in all and before its first training step.

    It stands between the training loop and the functions that the loop calls, which do not know of it.
    """

    def __init__(self) -> None:
        from trainer.training import loop

        self._began = time.perf_counter()
        self._spent: dict[str, float] = defaultdict(float)
        self._first: tuple[float, dict[str, float]] | None = None
        for module, functions in STAGES.items():
            for function, stage in functions.items():
                self.time(importlib.import_module(f"trainer.training.{module}"), function, stage)
        step = vars(loop)["backward"]

        def noted(*args: Any) -> Any:
            if self._first is None:
                self._first = self._since(), dict(self._spent)
            return step(*args)

        vars(loop)["backward"] = noted

    def start(self) -> None:
        """Begin with a trial."""
        self._began, self._first = time.perf_counter(), None
        self._spent.clear()

    def begun(self) -> bool:
        """Whether the first step has begun."""
        return self._first is not None

    def read(self) -> Found:
        """The seconds since then."""
        assert self._first is not None, "a trial trains"
        first_step_s, before = self._first
        return {"first step": first_step_s, "before": before, "stages": dict(self._spent), "seconds": self._since()}

    def time(self, module: ModuleType, name: str, stage: str) -> None:
        """Count a function of a module as a stage."""
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
            torch.cuda.synchronize()  # what a stage has asked of the device is its own to wait for
        return time.perf_counter() - self._began


def cold(asked: Found) -> Iterator[Found]:
    """One trial as `python -m trainer --out FOLDER` runs it, its seconds counted from the start of the process."""
    import trainer.__main__  # noqa: F401  # what the command imports
    from trainer.config import TrainConfig
    from trainer.training.loop import TrainingInterrupted, train

    imported_s = time.time() - asked["started"]
    watch, metrics = Stopwatch(), {}
    (config,) = asked["configs"]
    stop = watch.begun if asked.get("first_step") else (lambda: False)
    places = {"data_root": asked["data"], "folder": f"{asked['folder']}/cold", "device": asked["device"]}
    with contextlib.suppress(TrainingInterrupted):
        for epoch in train(TrainConfig(**config), **places, stop=stop):
            metrics = epoch.metrics
    found = watch.read()
    before = {"imports": imported_s} | found["before"]
    seconds = {name: imported_s + found[name] for name in ("first step", "seconds")}
    yield found | seconds | {"before": before, "metrics": metrics}


def published(asked: Found) -> Iterator[Found]:
    """One trial as the published scripts run it."""
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
    """Trials one after another as a worker of a sweep trains them; after each, the memory that the process holds."""
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
    """Of a process that finds nothing of an earlier one but what is in the folder."""
    foreign = ("SPTUNE_", "RAY_", "TUNE_", "MLFLOW_")
    own = {"SPTUNE_CACHE": cache, "SPTUNE_DATA": f"{folder}/data", "MLFLOW_DISABLE_TELEMETRY": "true"}
    own |= {"RAY_ADDRESS": "local", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(Path(__file__).parents[2])}
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)} | own


def trials_alone(
    how: str, configs: Sequence[Mapping[str, Any]], environment: dict[str, str], **more: Any
) -> Iterator[Found]:
    """Start such a process, and yield what it tells of each trial.

    Raises:
        RuntimeError: if it fails, with the end of what it said.
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
            raise RuntimeError(f"{how} trials ended so:\n{log.read()[-4000:]}")


def main() -> None:
    """Do what is asked."""
    asked = json.load(sys.stdin)
    for found in WAYS[asked["how"]](asked):
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6  # Linux counts in KiB
        print(json.dumps(found | {"peak MB": peak_mb}), flush=True)


if __name__ == "__main__":
    main()
