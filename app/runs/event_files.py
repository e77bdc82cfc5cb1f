"""A run's metrics as a TensorBoard event file, written by hand: a few protobuf fields a record, and its checksums.

A record is length (8 bytes, little endian), masked CRC-32C of those bytes, data, masked CRC-32C of the data, as in
TensorFlow's TFRecord. The data is an Event: wall_time = 1, step = 2, file_version = 3, summary = 5, whose value = 1
holds tag = 1 and simple_value = 2 (tensorboard/compat/proto/event.proto and summary.proto).
"""

import math
import struct
from collections.abc import Iterable, Iterator
from datetime import datetime

from app.runs.curves import DEV

_POLYNOMIAL = 0x82F63B78  # Castagnoli's, bits reversed


def _table() -> list[int]:
    found = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = (value >> 1) ^ (_POLYNOMIAL if value & 1 else 0)
        found.append(value)
    return found


_TABLE = _table()


def crc32c(data: bytes) -> int:
    """CRC-32C (RFC 3720, appendix B.4)."""
    value = 0xFFFFFFFF
    for byte in data:
        value = (value >> 8) ^ _TABLE[(value ^ byte) & 0xFF]
    return value ^ 0xFFFFFFFF


def _masked(data: bytes) -> bytes:
    value = crc32c(data)
    return struct.pack("<I", (((value >> 15) | (value << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def _bytes_field(number: int, data: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(data)) + data


def _record(wall_time: float, rest: bytes) -> bytes:
    event = b"\x09" + struct.pack("<d", wall_time) + rest
    length = struct.pack("<Q", len(event))
    return length + _masked(length) + event + _masked(event)


def tag_of(name: str) -> str:
    """loss → loss/train, dev_loss → loss/dev: TensorBoard shows the two in one group."""
    return f"{name.removeprefix(DEV)}/dev" if name.startswith(DEV) else f"{name}/train"


def write_events(
    began: datetime, points: Iterable[tuple[str, int, float | None, datetime]]
) -> Iterator[bytes]:  # fmt: skip
    """The file's bytes: a point (name, step, value, when) a record. What was not finite is not a number there too."""
    yield _record(began.timestamp(), _bytes_field(3, b"brain.Event:2"))
    for name, step, value, at in points:
        scalar = b"\x15" + struct.pack("<f", math.nan if value is None else _as_float(value))
        summary = _bytes_field(1, _bytes_field(1, tag_of(name).encode()) + scalar)
        yield _record(at.timestamp(), b"\x10" + _varint(step) + _bytes_field(5, summary))


def _as_float(value: float) -> float:
    """The nearest the format's 32 bits can hold; what is beyond them is infinite."""
    return value if abs(value) <= 3.4028234663852886e38 else math.copysign(math.inf, value)
