"""What the images of an import are: which cannot be read, and which are changed when they are read."""

from __future__ import annotations

from trainer.data.images import DARK, TURNED, read_image
from trainer.data.importers.archive import ImportRefused
from trainer.data.importers.names import first_names
from trainer.plain_text import counted

MAX_NAMED = 20
"""Images that cannot be read and are named in an error."""


class ImageTally:
    """The images of an import, counted as they are read.

    Args:
        upright: whether the task's images are turned by their EXIF orientation.
    """

    def __init__(self, *, upright: bool) -> None:
        self._upright = upright
        self._num_images = 0
        self._broken: list[str] = []
        # Names of the images, by split and repair.
        self._repaired: dict[tuple[str, str], list[str]] = {}
        self._brightest: int | None = None

    def add(self, split: str, name: str, image: bytes) -> bool:
        """Count an image, and return whether it can be read."""
        self._num_images += 1
        try:
            if not image:
                raise ValueError("cannot be decoded: the file is empty")
            reading = read_image(image)
        except ValueError as error:
            self._broken.append(f"{name} {error}")
            return False

        turned = (TURNED,) if reading.is_turned and self._upright else ()
        for repair in (*reading.repairs, *turned):
            self._repaired.setdefault((split, repair), []).append(name)
        if reading.brightest is not None:
            self._brightest = max(self._brightest or 0, reading.brightest)
        return True

    def check(self) -> None:
        """Raise ImportRefused if images cannot be read, or would all be read as black."""
        if self._broken:
            listed = "\n".join(f"  {sentence}" for sentence in self._broken[:MAX_NAMED])
            num_more = len(self._broken) - MAX_NAMED
            more = f"\n  and {num_more:,} more" if num_more > 0 else ""
            raise ImportRefused(
                f"{len(self._broken):,} of {counted(self._num_images, 'image')} cannot be read; nothing was "
                f"imported. Download them again, convert them or remove them:\n{listed}{more}"
            )
        if self._brightest is not None and self._brightest <= DARK:
            raise ImportRefused(
                f"the images of 16 bits have no value above {self._brightest} of 65535, so they would be read as "
                "nearly black; nothing was imported. Scale their values to 0..65535, or convert them to 8 bits."
            )

    def repairs(self) -> list[str]:
        """Return a sentence for each change, with the number of images of a split and the first names."""
        return [
            f"{counted(len(names), 'image')} of {split}: {repair} ({first_names(names)})"
            for (split, repair), names in self._repaired.items()
        ]
