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
    """Variables of a .mat file, by their names; the file's others stay unread.

    Raises:
        ImportRefused: if the file is damaged or lacks one.
    """
    with tempfile.TemporaryDirectory() as folder, _reading(tree, name, Path(folder)) as path:
        from scipy.io import loadmat

        found = loadmat(path, variable_names=variables)
        return [np.asarray(found[variable]) for variable in variables]


def mat_shape(tree: SourceFiles, name: str, variable: str) -> tuple[int, ...]:
    """The shape of a variable, without reading it.

    Raises:
        ImportRefused: if the file is damaged or lacks it.
    """
    with tempfile.TemporaryDirectory() as folder, _reading(tree, name, Path(folder)) as path:
        from scipy.io import whosmat

        return tuple({found: shape for found, shape, _ in whosmat(path)}[variable])


@contextmanager
def _reading(tree: SourceFiles, name: str, folder: Path) -> Iterator[str]:
    try:
        yield str(tree.local(name, folder))
    except KeyError as error:
        raise ImportRefused(
            f"{tree.path}: {name} must hold the variable {error}; it is cut short or another file. Download it again."
        ) from error
    except ImportRefused:
        raise
    except Exception as error:  # SciPy does not say which errors a damaged file raises
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk is full, not the file damaged
        raise ImportRefused(f"{tree.path}: {name} is no whole .mat file: {error}. Download it again.") from error
