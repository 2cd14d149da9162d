"""What a disk does to a file."""

from __future__ import annotations

import random

DAMAGES = ("a flipped bit", "cut", "empty", "zeros", "a page of zeros")


def damage(data: bytes, kind: str, generator: random.Random) -> bytes:
    """Return the bytes of a file after damage of a kind at a random position."""
    position = generator.randrange(len(data)) if data else 0
    match kind:
        case "a flipped bit":
            return data[:position] + bytes([data[position] ^ 1 << generator.randrange(8)]) + data[position + 1 :]
        case "cut":
            return data[:position]
        case "empty":
            return b""
        case "zeros":
            return bytes(len(data))
        case _:
            end = min(len(data), position + 4096)
            return data[:position] + bytes(end - position) + data[end:]
