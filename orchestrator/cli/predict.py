"""The command `predict`: classes of image files and of folders, on the terminal or in a table."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.options import HomeOption, WeightsOption, console, whole_number
from orchestrator.environment.home import home_at
from orchestrator.errors import UserError
from trainer.plain_text import counted, csv_text, printable
from trainer.storage.files import write_bytes
from trainer.terminal import progress_bar

if TYPE_CHECKING:
    from trainer.inference import Classifier, Prediction

COLUMNS = ("image", "rank", "class_name", "confidence")
"""Columns of `--out`: a row for each image and class, the most likely class with rank 1."""
FORMATS = (".csv", ".parquet")


def predict(
    trial: Annotated[str, typer.Argument(metavar="TRIAL", help="The trial's id or its first letters, or its folder.")],
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE...", help="Image files, and folders of image files at any depth.")
    ],
    home: HomeOption = None,
    weights: WeightsOption = None,
    top: Annotated[int, typer.Option(parser=whole_number(1, 10_000), help="Classes to show for each image.")] = 3,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a table, .csv or .parquet, instead of printing: image, rank, class."),
    ] = None,
) -> None:
    """Classify images with the prompt and head of a finished trial."""
    import trainer

    # All mistakes are found before the classifier is loaded, which takes seconds.
    files, num_others = _image_files(images)
    if out is not None:
        _check_out(out)

    try:
        classifier = trainer.load(home_at(home).trial_folder(trial), weights=weights)
        if out is None:
            for image, predictions in zip(files, classifier.classify(files, top), strict=True):
                classes = "  ".join(f"{each.class_name} {100 * each.confidence:.1f} %" for each in predictions)
                console.print(f"{image}: {classes}")
        else:
            rows = [*_rows(classifier, files, top)]
            write_bytes(out, _as_csv(rows) if out.suffix == ".csv" else _as_parquet(rows))
            console.print(f"{counted(len(files), 'image')} in {out}")
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from None
    if num_others:
        others = counted(num_others, "file that is no image", "files that are no images")
        console.print(f"note: left out {others} by name")


def _image_files(paths: Sequence[Path]) -> tuple[list[Path], int]:
    """Return the image files of the paths, those of a folder in the order of their names, and how many others it has.

    Raises:
        UserError: if a path is missing, or there is no image.
    """
    # Imported here, because it loads Pillow.
    from trainer.data.importers.formats.own_layout import is_image_name
    from trainer.data.importers.names import is_system_name

    missing = [str(path) for path in paths if not path.is_file() and not path.is_dir()]
    if missing:
        raise UserError(f"there is no file {', '.join(missing)}.")

    images = []
    num_others = 0
    for path in paths:
        # A file that is named is an image, whatever its name.
        if path.is_file():
            images.append(path)
            continue

        inside = sorted(file for file in path.rglob("*") if file.is_file() and not is_system_name(file.name))
        of_folder = [file for file in inside if is_image_name(file.name)]
        images += of_folder
        num_others += len(inside) - len(of_folder)

    if not images:
        raise UserError(f"there is no image in {', '.join(map(str, paths))}.")
    return images, num_others


def _check_out(out: Path) -> None:
    """Raise UserError if a table cannot be written to a file of this name."""
    if out.suffix not in FORMATS:
        raise UserError(f"--out must end in {' or '.join(FORMATS)}, got {str(out)!r}.")
    if not out.absolute().parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}.")


def _rows(classifier: Classifier, files: list[Path], top: int) -> Iterator[tuple[str, int, str, float]]:
    """Yield the rows of the table, and show on a terminal how many images are classified."""
    with progress_bar() as progress:
        progress.disable = not progress.console.is_terminal
        bar = progress.add_task("classifying", total=len(files))
        predictions: list[Prediction]
        for image, predictions in zip(files, classifier.classify(files, top), strict=True):
            for rank, each in enumerate(predictions, start=1):
                # A name that is no UTF-8 is written with its bytes escaped.
                yield printable(str(image)), rank, each.class_name, each.confidence
            progress.advance(bar)


def _as_csv(rows: Sequence[tuple[str, int, str, float]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for image, rank, class_name, confidence in rows:
        writer.writerow((csv_text(image), rank, csv_text(class_name), confidence))
    return text.getvalue().encode()


def _as_parquet(rows: Sequence[tuple[str, int, str, float]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = [*zip(*rows, strict=True)]
    buffer = io.BytesIO()
    pq.write_table(pa.table(dict(zip(COLUMNS, map(list, columns), strict=True))), buffer)
    return buffer.getvalue()
