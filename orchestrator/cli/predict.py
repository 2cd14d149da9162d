"""The command `predict`: classes of image files and of folders, on the terminal or in a table."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.completion import complete_sweep
from orchestrator.cli.options import (
    HomeOption,
    JsonOption,
    WeightsOption,
    WhereOption,
    console,
    error_console,
    print_json,
    whole_number,
)
from orchestrator.cli.trial_filter import distinguishing_condition, first_final_trials
from orchestrator.environment.home import home_at
from orchestrator.environment.lookup import find_sweep
from orchestrator.errors import UserError
from orchestrator.spec.labels import study_text
from trainer.names import no_such_path
from trainer.plain_text import counted, csv_text, printable
from trainer.storage.files import list_folders, write_bytes

if TYPE_CHECKING:
    from trainer.inference import Prediction

    Classified = tuple[Path, list[Prediction]]

COLUMNS = ("image", "rank", "class_name", "confidence")
"""Columns of `--out`: a row for each image and class, the most likely class with rank 1."""
FORMATS = (".csv", ".parquet")


def predict(
    trial: Annotated[
        str,
        typer.Argument(
            metavar="SWEEP|TRIAL",
            autocompletion=complete_sweep,
            help="A sweep, whose first final trial is taken; or a trial: its id, its first letters, or its folder.",
        ),
    ],
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE...", help="Image files, and folders of image files at any depth.")
    ],
    where: WhereOption = None,
    home: HomeOption = None,
    weights: WeightsOption = None,
    top: Annotated[int, typer.Option(parser=whole_number(1, 10_000), help="Classes to show for each image.")] = 3,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a table, .csv or .parquet, instead of printing."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Classify images with what a finished trial has learnt. Exit status 1 if an image cannot be read.

    Of a sweep with several studies, `--where` selects one: `--where method=spt_deep`.
    """
    import trainer

    # All mistakes are found before the classifier is loaded, which takes seconds.
    files, num_others = _image_files(images)
    if out is not None:
        _check_out(out)
        if as_json:
            raise UserError("--json prints the classes and --out writes them: give one of the two.")

    folder = _trial_folder(trial, where, home)
    unreadable: list[str] = []
    try:
        classifier = trainer.load(folder, weights=weights)
        classes = classifier.classify(files, top, on_unreadable=lambda error: unreadable.append(str(error)))
        classified = zip(files, classes, strict=True)
        if as_json:
            print_json({"trial": trial, "images": [_image_json(image, found) for image, found in classified]})
        elif out is None:
            for image, found in classified:
                if found:
                    console.print(
                        f"{image}: " + "  ".join(f"{each.class_name} {100 * each.confidence:.1f} %" for each in found)
                    )
        else:
            rows = [*_rows(_with_progress(classified, len(files)))]
            write_bytes(out, _as_csv(rows) if out.suffix == ".csv" else _as_parquet(rows))
            console.print(f"{counted(len(files) - len(unreadable), 'image')} in {out}")
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from None

    if num_others and not as_json:
        others = counted(num_others, "file that is no image", "files that are no images")
        console.print(f"note: left out {others} by name")
    for sentence in unreadable:
        error_console.print(f"error: {sentence}")
    if unreadable:
        raise typer.Exit(1)


def _trial_folder(name: str, where: str | None, home: str | None) -> str:
    """Return the folder of a trial, or of the first final trial of a sweep's study.

    Raises:
        UserError: if there is none, or the sweep has several studies with one.
    """
    place = home_at(home)
    if where is None and name not in list_folders(f"{place.root}/sweeps"):
        return place.trial_folder(name)

    from orchestrator.study.study import load_studies

    place, database, spec = find_sweep(home, name)
    selected = first_final_trials(spec.name, load_studies(spec, database, epochs=False), where)
    database.close()
    if len(selected) > 1:
        names = ", ".join(study_text(study.plan) for study, _ in selected[:4])
        example = f"--where '{distinguishing_condition([study for study, _ in selected])}'"
        raise UserError(f"{spec.name} has {counted(len(selected), 'study')}: {names}. Select one, such as {example}.")
    return f"{place.trials_folder(spec.name)}/{selected[0][1].trial_id}"


def _image_json(image: Path, predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Return the classes of an image for scripts: none if it cannot be read."""
    classes = [{"class_name": each.class_name, "confidence": each.confidence} for each in predictions]
    return {"image": printable(str(image)), "classes": classes}


def _image_files(paths: Sequence[Path]) -> tuple[list[Path], int]:
    """Return the image files of the paths, those of a folder in the order of their names, and how many others it has.

    Raises:
        UserError: if a path is missing, or there is no image.
    """
    # Imported here, because it loads Pillow.
    from trainer.data.importers.formats.own_layout import is_image_name
    from trainer.data.importers.names import is_system_name

    missing = [path for path in paths if not path.is_file() and not path.is_dir()]
    if missing:
        raise UserError("\n".join(f"{path}: {no_such_path(path)}" for path in missing))

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


def _with_progress(classified: Iterable[Classified], total: int) -> Iterator[Classified]:
    """Yield the images, and show on a terminal how many are classified."""
    from trainer.progress_bar import progress_bar

    with progress_bar() as progress:
        progress.disable = not progress.console.is_terminal
        bar = progress.add_task("classifying", total=total)
        for each in classified:
            yield each
            progress.advance(bar)


def _rows(classified: Iterable[Classified]) -> Iterator[tuple[str, int, str, float]]:
    """Yield the rows of the table."""
    for image, predictions in classified:
        for rank, each in enumerate(predictions, start=1):
            # A name that is no UTF-8 is written with its bytes escaped.
            yield printable(str(image)), rank, each.class_name, each.confidence


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

    types = (pa.string(), pa.int64(), pa.string(), pa.float64())
    schema = pa.schema([*zip(COLUMNS, types, strict=True)])
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([dict(zip(COLUMNS, row, strict=True)) for row in rows], schema), buffer)
    return buffer.getvalue()
