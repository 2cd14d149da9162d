"""CRC-32C, the checksum of TFRecord files, written in numpy so that it is fast enough for gigabytes of images."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

LANES_FROM = 1024
"""Number of bytes from which numpy's lanes are faster than a Python loop."""


def crc32c(data: bytes) -> int:
    """Return the CRC-32C (Castagnoli) of bytes, for example 0xE3069283 for b"123456789"."""
    if len(data) < LANES_FROM:
        return _crc32c_in_a_loop(data)

    # A CRC without its two inversions is linear, and leading zeros do not change it. So the data, padded in front,
    # is cut into lanes of 16 bytes and the CRC of every lane is computed at once.
    padding = -len(data) % 16
    padded = np.zeros(padding + len(data), np.uint8)
    padded[padding:] = np.frombuffer(data, np.uint8)

    # The first inversion of the CRC is the inversion of the first four bytes.
    padded[padding : padding + 4] ^= 0xFF

    lanes = padded.reshape(-1, 16)
    tables = _lane_tables()
    crcs = tables[0][lanes[:, 0]]
    for column in range(1, 16):
        crcs ^= tables[column][lanes[:, column]]

    # Join neighbours until one CRC is left. The left CRC is first moved past the bytes of the right one.
    doublings = 0
    while len(crcs) > 1:
        if len(crcs) % 2:
            crcs = np.concatenate([np.zeros(1, np.uint32), crcs])
        crcs = _move(crcs[0::2], _move_tables(doublings)) ^ crcs[1::2]
        doublings += 1

    return int(crcs[0]) ^ 0xFFFFFFFF


def mask_crc(crc: int) -> int:
    """Return a checksum as TFRecord stores it: rotated right by 15 bits, plus a constant."""
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _crc32c_in_a_loop(data: bytes) -> int:
    crc = 0xFFFFFFFF
    table = _byte_table()
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)

    return crc ^ 0xFFFFFFFF


@functools.cache
def _byte_table() -> list[int]:
    """Return the CRC of each byte, from a CRC of 0."""
    table = list(range(256))
    for _ in range(8):
        table = [(crc >> 1) ^ (0x82F63B78 if crc & 1 else 0) for crc in table]

    return table


@functools.cache
def _lane_tables() -> list[NDArray[np.uint32]]:
    """Return one table per column of a lane of 16 bytes: what each byte contributes to the CRC of the lane."""
    table = np.array(_byte_table(), np.uint32)

    columns = [table]
    for _ in range(15):
        columns.append((columns[-1] >> 8) ^ table[columns[-1] & 0xFF])

    return columns[::-1]


@functools.cache
def _move_tables(doublings: int) -> NDArray[np.uint32]:
    """Return ``[4, 256]``: what each byte of a CRC becomes after `16 * 2**doublings` zero bytes."""
    if doublings:
        half = _move_tables(doublings - 1)
        return np.stack([_move(row, half) for row in half])

    crcs: NDArray[np.uint32] = np.arange(256, dtype=np.uint32) << np.arange(0, 32, 8, dtype=np.uint32)[:, None]
    table = np.array(_byte_table(), np.uint32)
    for _ in range(16):
        crcs = (crcs >> 8) ^ table[crcs & 0xFF]

    return crcs


def _move(crcs: NDArray[np.uint32], tables: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Return CRCs after the zero bytes that the tables are for."""
    moved: NDArray[np.uint32] = tables[0][crcs & 0xFF] ^ tables[1][crcs >> 8 & 0xFF] ^ tables[2][crcs >> 16 & 0xFF]
    moved ^= tables[3][crcs >> 24]
    return moved
