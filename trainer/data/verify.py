"""Verification of a stored task against its card and the catalog, and a contact sheet of its images."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from PIL import Image, ImageDraw, ImageFont

from trainer.catalog import TASKS, is_own
from trainer.data.images import TURNED, read_image, to_rgb
from trainer.data.publishing import left_over
from trainer.data.task_store import SPLITS, Card, Example, TaskDigest, read_card, read_examples
from trainer.data.tasks import missing_task, open_task
from trainer.plain_text import counted


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of verifying a task."""

    card: Card
    problems: list[str] = field(default_factory=list)
    """Why results on the task would be wrong."""
    notes: list[str] = field(default_factory=list)
    """What a reader of results should know."""


def verify(root: str, task: str, progress: Callable[[int, int], None] = lambda done, total: None) -> Verdict:
    """Read a task from its first to its last image and return what is wrong with it. Writes nothing.

    Args:
        progress: called after each image with the number of images read and their total.

    Raises:
        TaskMissing: if the task is not in the store, or its card is damaged.
        OSError: if the store cannot be read.
    """
    card = read_card(root, task)
    if card is None:
        raise missing_task(root, task)

    verdict = Verdict(card, notes=[f"{sentence}, as its source has them" for sentence in card.differs])
    problems = verdict.problems
    notes = verdict.notes

    row = TASKS.get(task)
    num_classes = len(card.class_names)
    if row is not None and num_classes != row.num_classes:
        problems.append(f"the card has {counted(num_classes, 'class')}, the catalog {row.num_classes}")

    digest = TaskDigest(upright=card.upright)
    num_turned = 0
    split_of_key: dict[str, str] = {}
    split_of_image: dict[bytes, str] = {}
    copies: list[str] = []
    num_done = 0
    total = sum(card.counts.values())
    for split in SPLITS:
        # Each image: its part of the fingerprint, its key, its bytes, and whether it can be decoded.
        labels = Counter[int]()
        for example in _readable_examples(root, task, split, card, problems):
            digest.add(split, example)
            labels[example.label] += 1

            if example.key in split_of_key:
                problems.append(f"key {example.key} is in {split_of_key[example.key]} and in {split}")
            split_of_key[example.key] = split

            image_hash = hashlib.sha256(example.image).digest()
            first_split = split_of_image.setdefault(image_hash, split)
            if first_split != split:
                copies.append(f"{example.key} ({first_split} and {split})")

            try:
                num_turned += read_image(example.image).is_turned
            except ValueError as error:
                problems.append(f"{example.key} in {split} {error}")

            num_done += 1
            progress(num_done, total)

        _check_labels(verdict, split, labels)

    if copies:
        notes.append(
            f"{counted(len(copies), 'image is', 'images are')} in two splits, byte for byte: {_first_three(copies)}"
        )

    if num_turned:
        notes.append(_turned_note(card, num_turned))
    notes.extend(left_over(root, task))

    fingerprint = digest.fingerprint
    if fingerprint != card.fingerprint:
        problems.append(f"the fingerprint is {fingerprint}, the card says {card.fingerprint}: the files were changed")
    return verdict


def _check_labels(verdict: Verdict, split: str, labels: Counter[int]) -> None:
    """Compare the number of images of a split, and their labels, with the card."""
    card = verdict.card
    num_classes = len(card.class_names)
    count = labels.total()
    if count != card.counts[split]:
        verdict.problems.append(f"{split} has {counted(count, 'image')}, the card says {card.counts[split]:,}")

    outside = sorted(label for label in labels if not 0 <= label < num_classes)
    if outside:
        verdict.problems.append(f"{split} has labels outside 0..{num_classes - 1}: {outside[:5]}")

    absent = [card.class_names[label] for label in range(num_classes) if not labels[label]]
    if absent:
        verdict.notes.append(f"{split} has no image of {_first_three(absent)}")


def _turned_note(card: Card, num_turned: int) -> str:
    if card.upright:
        return f"{counted(num_turned, 'image is', 'images are')} {TURNED}"
    singular, plural = "image has an EXIF orientation and is", "images have an EXIF orientation and are"
    turned = counted(num_turned, singular, plural)
    if not is_own(card.task):
        return f"{turned} not turned, as in the published code"
    return f"{turned} not turned, because an earlier version imported the task. Import it again to have them upright"


def _readable_examples(root: str, task: str, split: str, card: Card, problems: list[str]) -> Iterator[Example]:
    """Yield the examples of a split up to damage of its file, which is added to the problems."""
    try:
        yield from read_examples(root, task, split, card=card)
    except (ValueError, OSError) as error:
        # A missing file, or a disk or a bucket that refuses, is no damage.
        if isinstance(error, FileNotFoundError) or getattr(error, "errno", None) is not None:
            raise
        problems.append(str(error))


def _first_three(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"


def contact_sheet(root: str, task: str, *, classes: int = 12, images: int = 8, side: int = 96) -> bytes:
    """Return a PNG with one row per class: its name and its first training images.

    A demo task that the task store lacks is made first, as by `open_task`.

    Args:
        classes: most rows. Of more classes, evenly spaced ones are taken.
        images: most images of a row.
        side: longer side of an image, in pixels.

    Raises:
        TaskMissing: if the task is not in the store and is no demo task, or if its card is damaged.
        OSError: if the store cannot be read or written.
    """
    card = open_task(root, task)
    labels = [round(i * (len(card.class_names) - 1) / max(1, classes - 1)) for i in range(classes)]
    pictures: dict[int, list[Image.Image]] = {label: [] for label in labels}

    # The first images of each class, at their size on the sheet.
    for example in read_examples(root, task, "train", card=card):
        if example.label in pictures and len(pictures[example.label]) < images:
            with Image.open(io.BytesIO(example.image)) as opened:
                picture = to_rgb(opened, upright=card.upright)

            # Small pictures are enlarged without smoothing, so that their pixels can be seen.
            is_small = max(picture.size) < side
            resampling = Image.Resampling.NEAREST if is_small else Image.Resampling.BICUBIC
            scale = side / max(picture.size)
            size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
            pictures[example.label].append(picture.resize(size, resampling))

        # Large tasks are read only as far as needed.
        if all(len(of_class) == images for of_class in pictures.values()):
            break

    # The sheet: names on the left, images centred in their cells.
    left = 190
    gap = 4
    sheet = Image.new("RGB", (left + images * (side + gap), len(pictures) * (side + gap) + gap), "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(13)
    for row, (label, of_class) in enumerate(pictures.items()):
        top = gap + row * (side + gap)
        pen.text((gap, top + side // 2), card.class_names[label][:26], "black", font, anchor="lm")
        for column, picture in enumerate(of_class):
            corner = (left + column * (side + gap) + (side - picture.width) // 2, top + (side - picture.height) // 2)
            sheet.paste(picture, corner)

    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()
