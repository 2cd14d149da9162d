"""Choices of an engine, kept for later runs of the same kind, with the kernels that were compiled for them."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from trainer.model.compiled_blocks import keep_kernels_in, pack_kernels, unpack_kernels
from trainer.storage.files import read_bytes, write_bytes
from trainer.storage.integrity import pack_json, parse_json, read_or_set_aside
from trainer.storage.local_cache import cache_folder, make_cache_folder

EAGER = "eager"
"""The engine that runs everywhere."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineChoice:
    """Which engine runs the trials of a kind, and why."""

    engine: str
    images_per_s: dict[str, float] = field(default_factory=dict)
    """Training speed of the engines that were measured."""
    rejected: dict[str, str] = field(default_factory=dict)
    """Why others were not used, by engine."""


class EngineChoices:
    """Choices by kind of trial.

    Args:
        folder: folder (path or URI) that keeps them for other runs and machines; None to keep none.
        cache: folder of this machine for kernels; None for `SPTUNE_CACHE`, or ~/.cache/sptune.
    """

    def __init__(self, folder: str | None, cache: str | None) -> None:
        self._folder = folder
        self._cache = cache_folder(cache)

    def share_kernels(self) -> None:
        """Compile into this machine's cache, where other processes find the kernels."""
        keep_kernels_in(self._cache / "kernels")

    def kept(self, facts: dict[str, Any]) -> EngineChoice | None:
        """Return the kept choice for a kind of trial, with its kernels in this machine's cache; None if there is none.

        Args:
            facts: what the fastest engine depends on.

        Raises:
            OSError: if a file cannot be read.
        """
        if self._folder is None:
            return None
        choice = read_or_set_aside(f"{self._folder}/{_name(facts)}.json", _parse_choice)
        if choice is not None and "compiled" in choice.engine:
            kernels = read_bytes(f"{self._folder}/{_name(facts)}.kernels")
            if kernels is not None:
                unpack_kernels(kernels)
        return choice

    def get(self, facts: dict[str, Any], measure: Callable[[], EngineChoice]) -> EngineChoice:
        """Return the kept choice for a kind of trial, or else that of `measure`, which is kept then.

        One process of a machine measures at a time; those that wait for it take its choice.

        Args:
            facts: what the fastest engine depends on.

        Raises:
            OSError: if a file cannot be read or written.
        """
        make_cache_folder(self._cache)
        with (self._cache / "engines.lock").open("w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            choice = self.kept(facts)
            if choice is None:
                measured = measure()
                # Another machine may have measured meanwhile. All stay with one choice.
                choice = self.kept(facts) or measured
                if choice is measured:
                    self._write(choice, facts)
            return choice

    def _write(self, choice: EngineChoice, facts: dict[str, Any]) -> None:
        if self._folder is None:
            return
        # The kernels first: who finds the choice finds them, too.
        kernels = pack_kernels() if "compiled" in choice.engine else None
        if kernels is not None:
            write_bytes(f"{self._folder}/{_name(facts)}.kernels", kernels)
        write_bytes(f"{self._folder}/{_name(facts)}.json", pack_json(asdict(choice) | {"kind": facts}))


def _name(facts: dict[str, Any]) -> str:
    """Return the file name of a kind of trial."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _parse_choice(data: bytes) -> EngineChoice:
    values = parse_json(data)
    return EngineChoice(**{name: values[name] for name in ("engine", "images_per_s", "rejected")})
