"""VTAB's labels of the structured tasks, from what their data sets annotate; -1 where a rule gives none."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trainer.data.importers.archive import ImportRefused

CLEVR_THRESHOLDS = (0.0, 8.0, 8.5, 9.0, 9.5, 10.0, 100.0)
KITTI_THRESHOLDS = (-100.0, 8.0, 20.0, 999.0)
KITTI_VEHICLES = ("Car", "Van", "Truck")
KITTI_NO_VEHICLE = 1000.0
"""The distance that an image without a vehicle gets, in metres."""


def numbers(count: int) -> tuple[str, ...]:
    """Names of classes that have none: "0", "1", ..."""
    return tuple(map(str, range(count)))


CLASS_NAMES = {
    "vtab/clevr_count": tuple(f"{count} objects" for count in range(3, 11)),
    "vtab/clevr_dist": ("up to 8", "up to 8.5", "up to 9", "up to 9.5", "up to 10", "above 10"),
    "vtab/dmlab": numbers(6),
    "vtab/kitti": ("up to 8 m", "up to 20 m", "above 20 m", "no vehicle"),
    "vtab/dsprites_loc": numbers(16),
    "vtab/dsprites_ori": numbers(16),
    "vtab/smallnorb_azi": tuple(f"{degrees} degrees" for degrees in range(0, 360, 20)),
    "vtab/smallnorb_ele": tuple(f"{degrees} degrees" for degrees in range(30, 75, 5)),
}


def clevr_count_label(num_objects: int) -> int:
    """3 objects are class 0, and 10 are class 7."""
    return num_objects - 3


def clevr_distance_label(distances: Sequence[float]) -> int:
    """The last threshold below the nearest object, of the objects' third pixel coordinates."""
    return _last_below(min(distances, default=-np.inf), CLEVR_THRESHOLDS)


def kitti_label(vehicle_distances: Sequence[float]) -> int:
    """The last threshold below the nearest car, van or truck, in metres from the camera; 3 if there is none."""
    return _last_below(min(vehicle_distances, default=KITTI_NO_VEHICLE), KITTI_THRESHOLDS)


def dsprites_label(attribute: int, num_values: int) -> int:
    """Which 16th of an attribute's values this one is in: 2 positions a class, or 2.5 orientations."""
    return int(attribute // (num_values / 16))


def smallnorb_azimuth_label(azimuth: int) -> int:
    """The annotated azimuth is 0, 2, ..., 34, each 10 degrees."""
    return azimuth // 2 if azimuth % 2 == 0 else -1


def checked(label: int, class_names: Sequence[str], image: str) -> int:
    """The label.

    Raises:
        ImportRefused: if there is no such class.
    """
    if not 0 <= label < len(class_names):
        raise ImportRefused(
            f"{image}: the label must be in 0..{len(class_names) - 1}, got {label}; its annotation is not of this data "
            "set, or is damaged. Download it again."
        )
    return label


def _last_below(value: float, thresholds: Sequence[float]) -> int:
    # VTAB compares as float32: 8.5000001 is not above 8.5.
    return sum(threshold < float(np.float32(value)) for threshold in thresholds) - 1
