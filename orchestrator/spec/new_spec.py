"""Text of a new spec: commented, valid, and sized to a machine."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from orchestrator.spec.schema import MAX_NAME_LENGTH
from trainer.catalog import BACKBONES, METHODS
from trainer.first_search import COMMENTS, FirstSearch, first_search
from trainer.plain_text import counted, printable

SEEDS = (42, 44, 82)
"""Of the final trials: the first three of VPT's and SPT's."""
MOST_CONCURRENT = 4
"""Most trials of a study at once: more would make a short search blind."""
MOST_CORES = 4
"""Most cores of a trial on a GPU, which read and prepare its images."""
MOST_NAMED = 3
"""Most tasks that the comment at the top names."""
GIGABYTE = 10**9


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What trials may use."""

    cores: int
    memory: int
    """Bytes."""
    gpus: Sequence[str] = ()
    """Names of the GPUs."""

    def describe(self) -> str:
        """Return the machine in words."""
        gpus = "no GPU"
        if self.gpus:
            gpus = f"{counted(len(self.gpus), 'GPU')} ({' and '.join(dict.fromkeys(self.gpus))})"
        return f"{counted(self.cores, 'core')}, {self.memory / GIGABYTE:.0f} GB of memory and {gpus}"


@dataclass(frozen=True, kw_only=True, slots=True)
class NewSpec:
    """What a user decides about a new spec."""

    tasks: Sequence[str]
    backbones: Sequence[str]
    methods: Sequence[str]
    trials: int

    def text(self, file: str, machine: Machine, num_images: int | None) -> str:
        """Return the text of the file.

        Args:
            file: its path, for the name of the sweep and for the commands in the comment at the top.
            num_images: training images of the smallest task; None if they are not known.
        """
        start = first_search(self.backbones, self.methods, num_images=num_images, on_gpu=bool(machine.gpus))
        slots = _num_slots(self, machine)
        blocks = [
            _head(self, file, machine),
            f"name: {_flow(sweep_name(file))}",
            "",
            "# What is compared: one study for each task, backbone and method.",
            *(f"{key}: {_flow([*getattr(self, key)])}" for key in ("tasks", "backbones", "methods")),
            "",
            "# The same in all trials.",
            "fixed:",
            *_fields(start.fixed),
            "",
            "# What each study searches. It leaves out what has no effect on its method.",
            "space:",
            *_fields(start.space),
            *_differences(start),
            "",
            "# Each study trains so many trials on train and scores them on val. The pruner stops weak ones early.",
            "search:",
            *(f"  {key}: {_flow(value)}" for key, value in _search(self, start, slots).items()),
            "",
            "# The best params of each study are trained again, once for each seed, and scored on test once.",
            f"final: {_flow({'seeds': [*SEEDS]})}",
            "",
            *_resources(machine, slots),
        ]
        return "\n".join([*blocks, ""])


def sweep_name(file: str) -> str:
    """Return the name of a sweep that its spec's file suggests: lower-case letters, digits, - and _."""
    name = re.sub(r"[^a-z0-9_]+", "-", Path(file).stem.lower()).strip("-_")
    return name[:MAX_NAME_LENGTH] or "sweep"


def _head(new: NewSpec, file: str, machine: Machine) -> str:
    """Return the comment at the top: the question, the machine, and the commands."""
    command = shlex.quote(printable(file))
    tasks = ", ".join(new.tasks) if len(new.tasks) <= MOST_NAMED else counted(len(new.tasks), "task")
    *others, last = new.methods
    question = (
        f"Which is best on {tasks}: {', '.join(others)} or {last}?" if others else f"How good is {last} on {tasks}?"
    )
    lines = [
        question,
        f"Written by `sptune new` for {machine.describe()}. search_spaces/README.md explains every key.",
        f"Check:  sptune plan {command}",
        f"Run:    sptune launch {command}",
    ]
    return "\n".join(f"# {printable(line)}" for line in lines)


def _fields(values: dict[str, Any]) -> Iterator[str]:
    """Yield fields of a training run, one on each line, with what they are."""
    for name, value in values.items():
        comment = f"  # {COMMENTS[name]}" if name in COMMENTS else ""
        yield f"  {name}: {_flow(value)}{comment}"


def _flow(value: Any) -> str:
    """Return a value as YAML on one line. Text that YAML would read as something else is quoted."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**6)
    # PyYAML ends a document of a single word with a line of dots.
    return text.removesuffix("...\n").strip()


def _differences(start: FirstSearch) -> Iterator[str]:
    if start.per:
        yield "\n# What differs for methods that train weights of the network, or add some."
        yield "per:"
    for methods, space in start.per.items():
        yield f"  - method: {_flow([*methods])}"
        yield f"    space: {_flow(space)}"


def _search(new: NewSpec, start: FirstSearch, slots: int) -> dict[str, Any]:
    # After the warm-up, because scores say little before.
    min_epochs = max(start.fixed["warmup_epochs"] + 2, start.fixed["epochs"] // 4)
    return {
        "trials": new.trials,
        # The first ones are drawn at random; half of a short search, so that the sampler learns something.
        "startup_trials": max(1, min(10, new.trials // 2)),
        "max_concurrent": min(MOST_CONCURRENT, slots),
        "pruner": {"type": "asha", "min_epochs": min_epochs, "reduction": 2},
    }


def _resources(machine: Machine, slots: int) -> Iterator[str]:
    """Yield what one trial occupies on this machine."""
    if machine.gpus:
        cores = max(1, min(MOST_CORES, machine.cores // len(machine.gpus)))
        yield "# Of one trial. With auto, trials share a GPU where MPS runs and that was measured to be faster."
        yield f"resources: {_flow({'gpus': 'auto', 'cpus': cores})}"
        return

    cores = max(1, machine.cores // slots)
    yield f"# Of one trial: {cores} of the {machine.cores} cores. On a machine with GPUs, write {{gpus: 1, cpus: 4}}."
    yield f"resources: {_flow({'cpus': cores})}"


def _num_slots(new: NewSpec, machine: Machine) -> int:
    """Return the number of trials that run at once: one a GPU, or as many as fit the cores and the memory."""
    if machine.gpus:
        return len(machine.gpus)

    is_trained = any(METHODS[name].backbone_learns for name in new.methods)
    most = max(_trial_memory(name, is_trained=is_trained) for name in new.backbones)
    return max(1, min(machine.cores, int(0.8 * machine.memory / most)))


def _trial_memory(backbone: str, *, is_trained: bool) -> float:
    """Return a guess of the bytes of a trial on a CPU: its process, images and activations, and the weights.

    `sptune plan --calibrate` measures it.
    """
    row = BACKBONES[backbone]
    num_weights = 12 * row.num_layers * row.embed_dim**2
    # Weights in fp32; where they are trained, also gradients and AdamW's two moments.
    return 2 * GIGABYTE + num_weights * (16 if is_trained else 4)
