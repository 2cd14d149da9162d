"""Protocols of published rows in words, and their differences from the sweep's."""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from orchestrator.report.published import UNKNOWN, Protocol, PublishedRow
from orchestrator.study.study import Study
from trainer.catalog import BACKBONES, TASKS
from trainer.config import TrainConfig

TRAINED_ON = {"trainval": "train + val", "train": "train alone"}
"""What `final.train_on` means, in words."""
EPOCHS = {
    "last": "the last epoch",
    "best_on_val": "the epoch that is best on val",
    "best_on_test": "the epoch that is best on test",
}
SCHEDULE = ("epochs", "warmup_epochs", "optimizer", "batch_size")
PIXELS = ("transform", "normalize")
IN_WORDS = {"train_on": "training images", "chosen_on": "the split that the params were chosen on", "epoch": "epoch"}
"""Words for the fields of a protocol whose names are not clear enough."""


def trained_on(studies: Sequence[Study]) -> str:
    """Return what the final trials of these studies train on, in words."""
    return " or ".join(dict.fromkeys(TRAINED_ON[study.spec.final.train_on] for study in studies))


def benchmark_of(task: str) -> str:
    """Return the benchmark of a task, such as vtab for vtab/dtd."""
    return task.partition("/")[0]


def describe(row: PublishedRow, benchmarks: Sequence[str]) -> tuple[str, ...]:
    """Return the protocol of a row in words, a sentence for each of these benchmarks."""
    sentences = []
    for benchmark in benchmarks:
        protocol = row.protocols[benchmark]
        sentences.append(
            f"{benchmark.upper()}: {_describe(row, protocol)}; checkpoint {row.checkpoint}. "
            f"Known from {protocol.evidence} ({protocol.name})."
        )
    return tuple(sentences)


def differences(row: PublishedRow, benchmarks: Sequence[str], studies: Sequence[Study]) -> tuple[str, ...]:
    """Return where the protocol of a row differs from that of our studies, and what is not known about it.

    Args:
        row: a published row.
        benchmarks: those of which the report prints a number of the row.
        studies: our studies that the row is compared with, on one backbone.
    """
    # A difference that several benchmarks share is one sentence.
    names: dict[str, list[str]] = {}
    for benchmark in benchmarks:
        # A recorded spec may name a task that the catalog no longer has.
        ours = [study for study in studies if benchmark_of(study.plan.task) == benchmark and study.plan.task in TASKS]
        for difference in _differences(row, row.protocols[benchmark], ours):
            names.setdefault(difference, []).append(benchmark.upper())

    tasks = {study.plan.task for study in studies}
    notes = (f"{task}: {note}." for task, note in row.notes.items() if task in tasks)
    return (*(f"{', '.join(where)}: {difference}." for difference, where in names.items()), *notes)


def marks(notes: Iterable[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """Return the mark of each row's notes, in the order of the rows: a to z, then aa, ab, ...

    Rows with the same notes share a mark. A row has one mark, because several would be too wide for a terminal.
    """
    different = dict.fromkeys(row_notes for row_notes in notes if row_notes)
    return {row_notes: _letters(number) for number, row_notes in enumerate(different)}


def _letters(number: int) -> str:
    letters = string.ascii_lowercase
    before = _letters(number // len(letters) - 1) if number >= len(letters) else ""
    return before + letters[number % len(letters)]


def _describe(row: PublishedRow, protocol: Protocol) -> str:
    """Return a protocol in words, with the settings of the row."""
    parts = []

    for name, values in (
        ("trained on {}", [TRAINED_ON[split] for split in protocol.train_on]),
        ("params chosen on {}", protocol.chosen_on),
        ("search: {}", protocol.search),
        ("test accuracy of {}", [EPOCHS[epoch] for epoch in protocol.epoch]),
    ):
        if values:
            parts.append(name.format(_join(values)))

    settings = [(name, getattr(protocol, name)) for name in (*SCHEDULE, *PIXELS)]
    settings += [(name, (value,)) for name, value in row.settings.items()]
    parts.append(", ".join(f"{name} {_join(values)}" for name, values in settings if values))

    absent = _not_known(protocol)
    parts.append(f"not known: {', '.join(absent)}" if absent else "")
    # A source may give no setting at all.
    return "; ".join(filter(None, parts))


def _not_known(protocol: Protocol) -> list[str]:
    """Return what no source gives, in words."""
    compared = ("train_on", "chosen_on", "epoch", *SCHEDULE, *PIXELS)
    return [IN_WORDS.get(name, name) for name in compared if not getattr(protocol, name)]


def _differences(row: PublishedRow, protocol: Protocol, studies: Sequence[Study]) -> Iterator[str]:
    """Yield the differences on one benchmark, the most important first."""
    yield from _training_images(protocol, studies)

    # We choose on val, and score the last epoch.
    if "test" in protocol.chosen_on:
        yield "params were chosen on test, ours on val"
    if protocol.epoch and protocol.epoch != ("last",):
        yield f"accuracy of {_join([EPOCHS[epoch] for epoch in protocol.epoch])}, ours of the last epoch"

    backbones = dict.fromkeys(study.plan.backbone for study in studies)
    if row.checkpoint != UNKNOWN and row.checkpoint not in backbones:
        yield f"other weights, so not comparable: {row.checkpoint}, ours {_join(list(backbones))}"

    # A schedule belongs to its method, so it is compared only with our studies of the same method.
    is_ours = any(study.plan.method == row.method for study in studies)
    for title, theirs in (
        ("other schedule", {name: getattr(protocol, name) for name in SCHEDULE} if is_ours else {}),
        ("other pixels", {name: getattr(protocol, name) for name in PIXELS}),
        ("other network", {name: (value,) for name, value in row.settings.items()}),
    ):
        settings = [_setting(name, values, studies, is_ours=is_ours) for name, values in theirs.items()]
        if any(settings):
            yield f"{title}: {', '.join(filter(None, settings))}"

    checkpoint = ["checkpoint"] if row.checkpoint == UNKNOWN else []
    absent = checkpoint + _not_known(protocol)
    if absent:
        yield f"not known: {', '.join(absent)}"


def _training_images(protocol: Protocol, studies: Sequence[Study]) -> Iterator[str]:
    """Yield how the training images differ, with the number of images of each task."""
    if not protocol.train_on:
        return
    (theirs,) = protocol.train_on

    numbers: dict[str, tuple[int, int]] = {}
    ours = ""
    for study in studies:
        if study.spec.final.train_on != theirs:
            ours = study.spec.final.train_on
            numbers[study.plan.task] = _num_images(study.plan.task, theirs), _num_images(study.plan.task, ours)
    if not numbers:
        return

    # The tasks of VTAB all have the same numbers.
    if len(numbers) > 1 and len(set(numbers.values())) == 1:
        numbers = {"each task": next(iter(numbers.values()))}
    images = ", ".join(
        f"{task.partition('/')[2] or task} {one:,} against {other:,}" for task, (one, other) in numbers.items()
    )
    yield f"trained on {TRAINED_ON[theirs]}, ours on {TRAINED_ON[ours]} (images: {images})"


def _num_images(task: str, train_on: str) -> int:
    row = TASKS[task]
    return row.num_train + (row.num_val if train_on == "trainval" else 0)


def _setting(name: str, theirs: Sequence[object], studies: Sequence[Study], *, is_ours: bool) -> str:
    """Return a setting with both values if they differ, and an empty text otherwise.

    With studies of the row's method, the values agree if all of ours are among theirs. With studies of other methods
    only, they agree if any of ours is among theirs.
    """
    ours = dict.fromkeys(value for study in studies for value in _our_values(study, name))
    agrees = ours.keys() <= set(theirs) if is_ours else not ours.keys().isdisjoint(theirs)
    if not theirs or not ours or agrees:
        return ""
    return f"{name} {_join(theirs)} (ours {_join(list(ours))})"


def _our_values(study: Study, name: str) -> list[Any]:
    """Return the values of a setting in the final trials, or those that the spec fixes if there are none yet."""
    values = [getattr(trial.config, name) for trial in study.requested_final_trials]
    if not values and name not in study.plan.space:
        defaults = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
        values = [study.plan.fixed.get(name, defaults[name])]

    # For most backbones `backbone` means ImageNet's mean and std.
    if name == "normalize":
        own = BACKBONES[study.plan.backbone].mean_and_std
        values = [own if value == "backbone" else value for value in values]
    return values


def _join(values: Sequence[object]) -> str:
    return " or ".join(map(str, values))
