"""Sources that have one folder per class: `parent/class/image.jpg`."""

from __future__ import annotations

from fnmatch import fnmatchcase

from trainer.data.importers.archive import ImportRefused, SourceFiles
from trainer.data.importers.formats.split_lists import ONE_PART
from trainer.data.importers.source import Listing, SourceRecord, source_files


def class_images(tree: SourceFiles, *parents: str) -> list[str]:
    """Return the names of all JPEG files in class folders below a folder that matches one of the shell patterns.

    The folder or archive of the source itself may be that parent folder.
    """
    path = tree.path.resolve()
    root_name = path.stem if path.is_file() else path.name

    # The root counts as the first folder of each path.
    images = []
    for name in tree.names:
        parts = [root_name, *name.split("/")]
        if len(parts) < 3 or not parts[-1].lower().endswith((".jpg", ".jpeg")):
            continue
        if any(fnmatchcase(parts[-3], parent) for parent in parents):
            images.append(name)

    return images


def class_listing(tree: SourceFiles, *parents: str, otherwise: str) -> Listing:
    """List all images of class folders as one part.

    Classes are sorted by their lower-case names, as in TFDS.

    Args:
        otherwise: what the user can do if there are no images; the end of the error message.

    Raises:
        ImportRefused: if there are no images.
    """
    images = class_images(tree, *parents)
    if not images:
        raise ImportRefused(
            f"{tree.path} must contain {' or '.join(parents)} with one folder of images per class. {otherwise}"
        )

    # If the source itself is the parent folder, names begin with the class: count from the end.
    class_of = {name: name.split("/")[-2] for name in images}
    class_names = sorted(set(class_of.values()), key=str.lower)
    label_of = {name: label for label, name in enumerate(class_names)}

    records = []
    for name in images:
        key = f"{class_of[name]}/{name.rpartition('/')[2]}"
        records.append(SourceRecord(key, label_of[class_of[name]], "all", name))

    return Listing(records=records, class_names=class_names, read=source_files(tree), draw=ONE_PART)
