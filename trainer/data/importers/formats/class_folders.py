"""Sources whose folders are their classes: `parent/class/image.jpg`."""

from __future__ import annotations

from fnmatch import fnmatchcase

from trainer.data.importers.archive import ImportRefused, SourceFiles
from trainer.data.importers.formats.split_lists import ONE_PART
from trainer.data.importers.source import Listing, SourceRecord, source_files


def class_images(tree: SourceFiles, *parents: str) -> list[str]:
    """The JPEGs of class folders in a folder that one of these shell patterns names; the tree's own name counts."""
    path = tree.path.resolve()
    own = path.stem if path.is_file() else path.name
    found = []
    for name in tree.names:
        parts = [own, *name.split("/")]
        if len(parts) > 2 and parts[-1].lower().endswith((".jpg", ".jpeg")):
            found += [name] if any(fnmatchcase(parts[-3], parent) for parent in parents) else []
    return found


def class_listing(tree: SourceFiles, *parents: str, otherwise: str) -> Listing:
    """All images of class folders, in one part; the classes in the order of their lower-case names, as TFDS has them.

    Raises:
        ImportRefused: if there is no image; `otherwise` says what to do.
    """
    images = class_images(tree, *parents)
    if not images:
        raise ImportRefused(f"{tree.path} must hold {' or '.join(parents)} with a folder a class. {otherwise}")
    # If the tree is the parent, its names begin with the class.
    class_of = {name: name.split("/")[-2] for name in images}
    classes = sorted(set(class_of.values()), key=str.lower)
    label = {name: i for i, name in enumerate(classes)}
    records = [
        SourceRecord(f"{class_of[name]}/{name.rpartition('/')[2]}", label[class_of[name]], "all", name)
        for name in images
    ]
    return Listing(records=records, class_names=classes, read=source_files(tree), draw=ONE_PART)
