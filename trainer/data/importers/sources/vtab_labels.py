"""Labels of VTAB's structured tasks, computed from the annotations of their data sets.

A rule returns -1 where it gives no label; `check_label` then refuses the image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trainer.data.importers.archive import ImportRefused

CLEVR_THRESHOLDS = (0.0, 8.0, 8.5, 9.0, 9.5, 10.0, 100.0)
KITTI_THRESHOLDS = (-100.0, 8.0, 20.0, 999.0)
KITTI_VEHICLES = ("Car", "Van", "Truck")
KITTI_NO_VEHICLE = 1000.0
"""Distance used for an image without a vehicle, in metres."""


def number_names(count: int) -> tuple[str, ...]:
    """Return names for classes that have none: "0", "1", ..."""
    return tuple(map(str, range(count)))


CLASS_NAMES = {
    "vtab/clevr_count": tuple(f"{count} objects" for count in range(3, 11)),
    "vtab/clevr_dist": ("up to 8", "up to 8.5", "up to 9", "up to 9.5", "up to 10", "above 10"),
    "vtab/dmlab": number_names(6),
    "vtab/kitti": ("up to 8 m", "up to 20 m", "above 20 m", "no vehicle"),
    "vtab/dsprites_loc": number_names(16),
    "vtab/dsprites_ori": number_names(16),
    "vtab/smallnorb_azi": tuple(f"{degrees} degrees" for degrees in range(0, 360, 20)),
    "vtab/smallnorb_ele": tuple(f"{degrees} degrees" for degrees in range(30, 75, 5)),
}


def clevr_count_label(num_objects: int) -> int:
    """Return the class of a number of objects: 3 objects are class 0, 10 objects are class 7."""
    return num_objects - 3


def clevr_distance_label(distances: Sequence[float]) -> int:
    """Return the index of the last threshold below the nearest object.

    Args:
        distances: the third pixel coordinate of each object.
    """
    return _last_below(min(distances, default=-np.inf), CLEVR_THRESHOLDS)


def kitti_label(vehicle_distances: Sequence[float]) -> int:
    """Return the index of the last threshold below the nearest car, van or truck; 3 if there is none.

    Args:
        vehicle_distances: in metres from the camera.
    """
    return _last_below(min(vehicle_distances, default=KITTI_NO_VEHICLE), KITTI_THRESHOLDS)


def dsprites_label(attribute: int, num_values: int) -> int:
    """Return the 16th of an attribute's values that contains this one: 2 positions or 2.5 orientations per class."""
    # 40 orientations are 2.5 per class: classes of 3 and 2 values alternate.
    return int(attribute // (num_values / 16))


def smallnorb_azimuth_label(azimuth: int) -> int:
    """Return the class of an annotated azimuth: 0, 2, ..., 34, in units of 10 degrees."""
    return azimuth // 2 if azimuth % 2 == 0 else -1


def check_label(label: int, class_names: Sequence[str], image: str) -> int:
    """Return the label.

    Raises:
        ImportRefused: if there is no such class.
    """
    if not 0 <= label < len(class_names):
        raise ImportRefused(
            f"{image}: the label must be in 0..{len(class_names) - 1}, got {label}; its annotation belongs to another "
            "data set or is damaged. Download the data set again."
        )
    return label


def _last_below(value: float, thresholds: Sequence[float]) -> int:
    # VTAB compares as float32: 8.5000001 is not above 8.5.
    return sum(threshold < float(np.float32(value)) for threshold in thresholds) - 1
