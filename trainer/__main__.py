"""Train one config by hand.

  python -m trainer --task demo/digits --method spt_deep --prompt-length 10 --epochs 10 --warmup-epochs 1 --out digits

Progress goes to standard error, and the result to standard output:

  val/accuracy 0.9650 after 10 epochs (trial a24ea317c33a)
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import itertools
import os
import sys
import typing
from typing import Any

import torch

from trainer.catalog import METHODS
from trainer.config import InvalidConfig, TrainConfig, field_types
from trainer.metric_names import TRAIN_LOSS
from trainer.phase import listening
from trainer.plain_text import counted, printable
from trainer.progress_bar import progress_bar
from trainer.storage.addresses import absolute_address
from trainer.terminal import open_terminal
from trainer.training.engine import ENGINES
from trainer.training.loop import EpochMetrics, TrainingDiverged, train

GROUPS = {
    "task": "what to train",
    "prompt_length": "prompt",
    "train_size": "images",
    "epochs": "optimization",
    "nmi": "measurements and seed",
}
"""Headings of the help, each by the first field under it. Fields follow in the order of TrainConfig."""

EPILOG = """\
Only --task and --method are required, and --prompt-length for methods with
prompts. spt methods start from mean_pool if --prompt-init is not given.

With --out, the folder holds a checkpoint, prototypes.safetensors and, at the
end, predictions.parquet, prompt.safetensors (what was learnt) and card.json.
trainer.load("FOLDER") makes a classifier of the last two. To continue an
interrupted run, type the same command again: the result is the same to the bit.

Exit status: 0 if the run finished, 1 if it failed, 2 if an option is wrong.
"""


def field_docs() -> dict[str, str]:
    """Return the docstring under each field of TrainConfig."""
    # Python keeps no docstrings of fields, so they are read from the source.
    body = typing.cast(ast.ClassDef, ast.parse(inspect.getsource(TrainConfig)).body[0]).body
    return {
        field.target.id: inspect.cleandoc(doc.value.value)
        for field, doc in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant) and isinstance(doc.value.value, str)
    }


def parse(arguments: list[str]) -> tuple[dict[str, object], argparse.Namespace]:
    """Return the given fields of TrainConfig, and the options that say where to run."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer",
        usage="%(prog)s --task NAME --method NAME [options]",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    docs = field_docs()
    group = parser.add_argument_group()
    for field in dataclasses.fields(TrainConfig):
        if field.name in GROUPS:
            group = parser.add_argument_group(GROUPS[field.name])
        _add_field(group, field, docs[field.name])

    # Everything that does not change the result, and so is no field of the config.
    places = parser.add_argument_group("where to run")
    places.add_argument(
        "--out",
        metavar="FOLDER",
        type=_address,
        help="Folder (path or URI) for checkpoint and results. If it holds a checkpoint of the same config, the run "
        "resumes from it. Nothing is kept if not given.",
    )
    places.add_argument(
        "--data",
        metavar="FOLDER",
        type=_address,
        default=os.environ.get("SPTUNE_DATA") or f"{os.environ.get('SPTUNE_HOME') or 'sptune-home'}/data",
        help="Task store. Demo tasks are made in it at first use. Default: SPTUNE_DATA, or `data` in the home: "
        "SPTUNE_HOME, or sptune-home.",
    )
    places.add_argument(
        "--weights",
        metavar="PATH",
        default=os.environ.get("SPTUNE_WEIGHTS") or None,
        help="File, or folder of files, that is searched first for the backbone's weights. Default: SPTUNE_WEIGHTS, or "
        "timm's hub.",
    )
    places.add_argument(
        "--prototype-cache",
        "--bank",
        metavar="FOLDER",
        type=_address,
        help="Folder of prototypes that runs share, so that each set is built once. Built anew if not given.",
    )
    places.add_argument(
        "--device",
        metavar="NAME",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="Device to train on: cpu, cuda, cuda:1. Default: cuda if there is one, or cpu.",
    )
    places.add_argument(
        "--engine",
        choices=ENGINES,
        help="How a training step is computed. Default: as in the checkpoint; else eager on a CPU, and on a GPU the "
        "fastest that agrees with eager.",
    )

    options = parser.parse_args(arguments)
    fields = {name: value for name, value in vars(options).items() if name in field_types()}
    return fields, options


def _add_field(group: argparse._ArgumentGroup, field: dataclasses.Field[Any], doc: str) -> None:
    """Add the option of a field of TrainConfig. Options that are not given are left to the config's defaults."""
    hint = field_types()[field.name]
    kinds = typing.get_args(hint) or (hint,)
    is_required = field.default is dataclasses.MISSING

    help_text = doc
    if not is_required and field.default is not None and bool not in kinds:
        help_text += f" Default: {field.default}."

    keywords: dict[str, Any] = {"type": str, "metavar": "NAME"}
    if bool in kinds:
        keywords = {"action": "store_true"}
    elif {float, int} <= {*kinds}:
        keywords = {"type": _size, "metavar": "SIZE"}
    elif float in kinds or int in kinds:
        keywords = {"type": kinds[0], "metavar": "NUMBER"}
    elif typing.get_origin(hint) is typing.Literal:
        # The config refuses other values, with all its problems at once; argparse would stop at the first.
        keywords["metavar"] = f"{{{','.join(kinds)}}}"

    # argparse reads % in a help text as the start of a placeholder.
    group.add_argument(
        f"--{field.name.replace('_', '-')}",
        required=is_required,
        default=argparse.SUPPRESS,
        help=help_text.replace("%", "%%"),
        **keywords,
    )


def _address(text: str) -> str:
    try:
        return absolute_address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _size(text: str) -> float | int | str:
    """Return 10 as a number of things and 1.0 as a share of them. Words are left to the config."""
    try:
        return int(text) if text.isdecimal() else float(text)
    except ValueError:
        return text


def main(arguments: list[str] | None = None) -> int:
    """Train with a progress bar and return the exit status. Errors are one sentence each on standard error."""
    fields, options = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        # Only here: a spec names its init strategy, because the choice is part of what it studies.
        method = METHODS.get(str(fields["method"]))
        if method and method.has_prototypes:
            fields.setdefault("prompt_init", "mean_pool")

        config = TrainConfig.from_params(fields)
        _check_device(options.device)
        last = _train_with_progress(config, options)
    except InvalidConfig as error:
        for name, problem in error.problems.items():
            print(f"--{name.replace('_', '-')}: {printable(problem)}", file=sys.stderr)
        return 2
    except DeviceError as error:
        print(f"--device: {error}", file=sys.stderr)
        return 2
    except (ValueError, OSError, TrainingDiverged) as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 1

    accuracy = last.metrics[config.eval_metric]
    print(f"{config.eval_metric} {accuracy:.4f} after {counted(config.epochs, 'epoch')} (trial {config.fingerprint()})")
    return 0


class DeviceError(Exception):
    """torch does not know the device, or cannot use it."""


def _check_device(name: str) -> None:
    """Raise DeviceError if nothing can be kept on a device."""
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        # The first sentence says what is wrong; torch's own trace may follow.
        raise DeviceError(f"{name!r} cannot be used: {str(error).splitlines()[0].rstrip('.')}.") from None


def _train_with_progress(config: TrainConfig, options: argparse.Namespace) -> EpochMetrics:
    """Train, show the epochs on standard error, and return the last one."""
    score = ""
    name = f"{config.task} {config.method}"
    with progress_bar() as progress:
        bar = progress.add_task(name, total=config.epochs)

        with listening(lambda phase: progress.update(bar, description=f"{name}  {phase}")):
            for epoch in train(
                config,
                data_root=options.data,
                device=options.device,
                folder=options.out,
                weights=options.weights,
                prototype_cache=options.prototype_cache,
                engine=options.engine,
            ):
                # Not every epoch is scored. The last score stays.
                accuracy = epoch.metrics.get(config.eval_metric)
                if accuracy is not None:
                    score = f"  {config.eval_metric} {accuracy:.4f}"
                description = f"{name}  loss {epoch.metrics[TRAIN_LOSS]:.3f}{score}"
                progress.update(bar, completed=epoch.epoch, description=description)
    return epoch


if __name__ == "__main__":
    open_terminal()
    sys.exit(main())
