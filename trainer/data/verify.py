"""Whether a stored task is what its card and the catalog say, and what it looks like."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from PIL import Image, ImageDraw, ImageFont

from trainer.catalog import TASKS
from trainer.data.images import check, to_rgb
from trainer.data.task_store import SPLITS, Card, read_examples
from trainer.data.tasks import open_task


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found of a task."""

    card: Card
    problems: list[str] = field(default_factory=list)
    """Why results on it would be wrong."""
    notes: list[str] = field(default_factory=list)
    """What a reader of results should know."""


def verify(root: str, task: str, progress: Callable[[int, int], None] = lambda done, total: None) -> Verdict:
    """Read a task from its first to its last image.

    Raises:
        TaskMissing: if the task is not in the store.
        OSError: if the store cannot be read.
    """
    card = open_task(root, task)
    verdict = Verdict(card, notes=[f"{part}, as its source has them" for part in card.differs])
    problems, notes = verdict.problems, verdict.notes
    row, classes = TASKS.get(task), len(card.class_names)
    if row is not None and classes != row.num_classes:
        problems.append(f"the card has {classes} classes, the catalog {row.num_classes}")
    digest, seen_keys = hashlib.sha256(), dict[str, str]()
    seen_images, copies = dict[bytes, str](), list[str]()
    done, total = 0, sum(card.counts.values())
    for split in SPLITS:
        labels = Counter[int]()
        for one in read_examples(root, task, split):
            digest.update(one.content(split))
            labels[one.label] += 1
            if one.key in seen_keys:
                problems.append(f"key {one.key} is in {seen_keys[one.key]} and in {split}")
            seen_keys[one.key] = split
            content = hashlib.sha256(one.image).digest()
            if seen_images.setdefault(content, split) != split:
                copies.append(f"{one.key} ({seen_images[content]} and {split})")
            try:
                check(one.image)
            except ValueError as error:
                problems.append(f"{one.key} in {split} {error}")
            done += 1
            progress(done, total)
        if (count := labels.total()) != card.counts[split]:
            problems.append(f"{split} has {count:,} images, the card says {card.counts[split]:,}")
        if outside := sorted(label for label in labels if not 0 <= label < classes):
            problems.append(f"{split} has labels outside 0..{classes - 1}: {outside[:5]}")
        if absent := [card.class_names[label] for label in range(classes) if not labels[label]]:
            more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
            notes.append(f"{split} has no image of {', '.join(absent[:3])}{more}")
    if copies:
        more = f" and {len(copies) - 3} more" if len(copies) > 3 else ""
        notes.append(f"{len(copies)} images are in two splits, byte for byte: {', '.join(copies[:3])}{more}")
    if (found := digest.hexdigest()[:16]) != card.fingerprint:
        problems.append(f"the fingerprint is {found}, the card says {card.fingerprint}: the files were changed")
    return verdict


def contact_sheet(root: str, task: str, *, classes: int = 12, images: int = 8, side: int = 96) -> bytes:
    """A PNG with a row a class: its name and the first training images.

    Raises:
        TaskMissing: if the task is not in the store.
    """
    card = open_task(root, task)
    shown = [round(i * (len(card.class_names) - 1) / max(1, classes - 1)) for i in range(classes)]
    rows: dict[int, list[Image.Image]] = {label: [] for label in shown}
    for example in read_examples(root, task, "train"):
        if example.label in rows and len(rows[example.label]) < images:
            with Image.open(io.BytesIO(example.image)) as opened:
                picture = to_rgb(opened)
            # Small pictures are enlarged without smoothing, so that one sees their pixels.
            how = Image.Resampling.NEAREST if max(picture.size) < side else Image.Resampling.BICUBIC
            scale = side / max(picture.size)
            size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
            rows[example.label].append(picture.resize(size, how))
        if all(len(found) == images for found in rows.values()):
            break
    left, gap = 190, 4
    sheet = Image.new("RGB", (left + images * (side + gap), len(rows) * (side + gap) + gap), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for place, (label, found) in enumerate(rows.items()):
        top = gap + place * (side + gap)
        pen.text((gap, top + side // 2), card.class_names[label][:26], "black", font, anchor="lm")
        for column, picture in enumerate(found):
            corner = (left + column * (side + gap) + (side - picture.width) // 2, top + (side - picture.height) // 2)
            sheet.paste(picture, corner)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()
