"""The commands about networks: `backbones` and `predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from orchestrator.cli.options import HomeOption, WeightsOption, console, whole_number
from orchestrator.environment.home import home_at
from orchestrator.errors import UserError
from trainer.catalog import BACKBONES
from trainer.model.weights import WeightsError, find_weights


def backbones(weights: WeightsOption = None) -> None:
    """List the backbones and where the weights of each would come from."""
    if weights and "://" not in weights and not Path(weights).expanduser().exists():
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


def predict(
    trial: Annotated[str, typer.Argument(metavar="TRIAL", help="The trial's id or its first letters, or its folder.")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.")],
    home: HomeOption = None,
    weights: WeightsOption = None,
    top: Annotated[int, typer.Option(parser=whole_number(1, 10_000), help="Classes to show for each image.")] = 3,
) -> None:
    """Classify images with the prompt and head of a finished trial."""
    import trainer

    # Before the classifier is loaded, which takes seconds.
    missing = [str(image) for image in images if not image.is_file()]
    if missing:
        raise UserError(f"there is no file {', '.join(missing)}.")

    try:
        classifier = trainer.load(home_at(home).trial_folder(trial), weights=weights)
        for image, predictions in zip(images, classifier.classify(images, top), strict=True):
            classes = "  ".join(f"{each.class_name} {100 * each.confidence:.1f} %" for each in predictions)
            console.print(f"{image}: {classes}", highlight=False, soft_wrap=True)
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from None
