"""The results of a finished run, read back with their checksums. No torch."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from trainer.run_folder import CARD, PREDICTIONS, PROMPT, RunCard
from trainer.storage.integrity import DamagedFile, read_checked

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T")

RUN_AGAIN = (
    "Run it again: with `sptune resume SWEEP --trial TRIAL` if it is a trial of a sweep, otherwise with the same "
    "command. The result is the same."
)


def read_result(folder: str, name: str, parse: Callable[[bytes], T]) -> T | None:
    """Return what `parse` makes of a result of a run, or None if it does not exist.

    Raises:
        DamagedFile: if the file is damaged, with the way out.
        NewerVersion: if a newer version of sptune wrote the file.
        OSError: if the folder cannot be read.
    """
    try:
        return read_checked(f"{folder}/{name}", parse)
    except DamagedFile as error:
        raise DamagedFile(f"{error} {RUN_AGAIN}") from error


def read_run_card(folder: str) -> RunCard | None:
    """Return the card of a run, or None if it does not exist. Errors are those of `read_result`."""
    return read_result(folder, CARD, RunCard.from_json)


def read_predictions(folder: str, columns: Sequence[str] | None = None) -> pa.Table | None:
    """Return the predictions of a run, or None if they do not exist. Errors are those of `read_result`."""
    import pyarrow.parquet as pq

    def parse(data: bytes) -> pa.Table:
        return pq.read_table(io.BytesIO(data), columns=columns)

    return read_result(folder, PREDICTIONS, parse)


def has_whole_results(folder: str) -> bool:
    """Return whether card, predictions and learnt tensors of a run are there and undamaged.

    Raises:
        NewerVersion: if a newer version of sptune wrote the card.
        OSError: if the folder cannot be read.
    """
    import safetensors

    try:
        results = (
            read_run_card(folder),
            read_predictions(folder),
            read_result(folder, PROMPT, safetensors.deserialize),
        )
    except DamagedFile:
        return False
    return all(result is not None for result in results)
