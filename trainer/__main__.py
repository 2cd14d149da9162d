"""One training run by hand: `python -m trainer --task demo/digits --method spt_deep --prompt-length 10`."""

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
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from trainer.catalog import METHODS
from trainer.config import InvalidConfig, TrainConfig, field_types
from trainer.metric_names import TRAIN_LOSS
from trainer.training.loop import TrainingDiverged, train


def field_docs() -> dict[str, str]:
    """The docstring under each field of TrainConfig."""
    body = typing.cast(ast.ClassDef, ast.parse(inspect.getsource(TrainConfig)).body[0]).body
    return {
        field.target.id: inspect.cleandoc(doc.value.value)
        for field, doc in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant) and isinstance(doc.value.value, str)
    }


def parse(arguments: list[str]) -> tuple[dict[str, object], argparse.Namespace]:
    """The config's values, and the options that say where to run."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer",
        description=__doc__,
        epilog="SPT methods start from mean_pool where --prompt-init is not given.",
    )
    docs = field_docs()
    for field in dataclasses.fields(TrainConfig):
        kinds = typing.get_args(hint := field_types()[field.name]) or (hint,)
        required = field.default is dataclasses.MISSING
        default = "" if required or field.default is None else f" Default: {field.default}."
        read: dict[str, Any] = {"type": str, "metavar": "NAME"}
        if bool in kinds:
            read = {"action": "store_true"}
        elif float in kinds or int in kinds:
            read = {"type": _size if {float, int} <= {*kinds} else kinds[0], "metavar": "NUMBER"}
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            required=required,
            default=argparse.SUPPRESS,
            help=(docs[field.name] + default).replace("%", "%%"),
            **read,
        )
    parser.add_argument(
        "--data",
        default=os.environ.get("SPTUNE_DATA", "sptune-home/data"),
        help="the task store; demo tasks are made in it at first use. Default: SPTUNE_DATA, or sptune-home/data.",
    )
    parser.add_argument(
        "--weights",
        default=os.environ.get("SPTUNE_WEIGHTS"),
        help="a file, or a folder of files, with the backbone's weights. Default: SPTUNE_WEIGHTS, else timm's hub.",
    )
    parser.add_argument("--bank", help="folder of prototypes that runs share")
    parser.add_argument("--out", help="folder for checkpoint, prototypes and prompt; started again, it goes on")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    fields = {name: value for name, value in vars(options).items() if name in field_types()}
    return fields, options


def _size(text: str) -> float | int | str:
    """10 is a number of things, 1.0 a share of them; words are left to the config."""
    try:
        return int(text) if text.isdecimal() else float(text)
    except ValueError:
        return text


def main(arguments: list[str] | None = None) -> int:
    """Train with a progress bar; a user's mistake is one sentence on standard error and exit status 2."""
    fields, options = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        method = METHODS.get(str(fields["method"]))
        if method and len(method.prompt_inits) > 1:
            fields.setdefault("prompt_init", "mean_pool")
        config = TrainConfig.from_params(fields)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as progress:
            bar = progress.add_task(f"{config.task} {config.method}", total=config.epochs)
            places = {
                "data_root": options.data,
                "folder": options.out,
                "weights": options.weights,
                "bank": options.bank,
            }
            for epoch in train(config, device=options.device, **places):
                loss, score = epoch.metrics[TRAIN_LOSS], epoch.metrics.get(config.eval_metric)
                shown = f"loss {loss:.3f}" + (f"  {config.eval_metric} {score:.4f}" if score is not None else "")
                progress.update(bar, completed=epoch.epoch, description=f"{config.task} {config.method}  {shown}")
    except InvalidConfig as error:
        for name, problem in error.problems.items():
            print(f"--{name.replace('_', '-')}: {problem}", file=sys.stderr)
        return 2
    except (ValueError, OSError, TrainingDiverged) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    score = epoch.metrics[config.eval_metric]
    print(f"{config.eval_metric} {score:.4f} after {config.epochs} epochs (trial {config.fingerprint()})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
