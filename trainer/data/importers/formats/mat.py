"""MATLAB's .mat files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.data.importers.archive import ImportRefused, SourceFiles


def mat_arrays(tree: SourceFiles, name: str, *variables: str) -> list[NDArray[Any]]:
    """Read the named variables of a .mat file. The other variables stay unread.

    Raises:
        ImportRefused: if the file is damaged or a variable is missing.
    """
    with tempfile.TemporaryDirectory() as folder, _reading(tree, name, Path(folder)) as path:
        from scipy.io import loadmat

        arrays = loadmat(path, variable_names=variables)
        return [np.asarray(arrays[variable]) for variable in variables]


def mat_shape(tree: SourceFiles, name: str, variable: str) -> tuple[int, ...]:
    """Return the shape of a variable without reading it.

    Raises:
        ImportRefused: if the file is damaged or the variable is missing.
    """
    with tempfile.TemporaryDirectory() as folder, _reading(tree, name, Path(folder)) as path:
        from scipy.io import whosmat

        shapes = {stored: shape for stored, shape, _ in whosmat(path)}
        return tuple(shapes[variable])


@contextmanager
def _reading(tree: SourceFiles, name: str, folder: Path) -> Iterator[str]:
    """Yield the path of a file on disk, and turn the errors of reading it into ImportRefused."""
    try:
        yield str(tree.local(name, folder))

    except KeyError as error:
        raise ImportRefused(
            f"{tree.path}: {name} must contain the variable {error}; it is truncated or a different file. "
            "Download it again."
        ) from error

    except ImportRefused:
        raise

    # SciPy does not document which errors a damaged file raises.
    except Exception as error:
        # An error number comes from the system: the disk is full, for example, and the file is not damaged.
        if isinstance(error, OSError) and error.errno is not None:
            raise

        raise ImportRefused(f"{tree.path}: {name} is not a complete .mat file: {error}. Download it again.") from error
