"""The TensorBoard export, read back by a reader that shares nothing with the writer and checks every checksum."""

import struct
from datetime import UTC, datetime
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app import db
from app.projects.models import Project
from app.prompts.recipes import ImportPromptsRecipe
from app.runs import queue
from app.runs.event_files import crc32c, write_events
from app.runs.models import Metric

AT = datetime(2026, 11, 1, 12, 0, 0, 250_000, tzinfo=UTC)


def slow_crc(data: bytes) -> int:
    """CRC-32C bit by bit, most significant first on reflected bytes, as its definition has it."""
    value = 0xFFFFFFFF
    for byte in data:
        for bit in range(8):
            top = (value >> 31) ^ (byte >> bit & 1)
            value = (value << 1 & 0xFFFFFFFF) ^ (0x1EDC6F41 if top else 0)
    return int(f"{value:032b}"[::-1], 2) ^ 0xFFFFFFFF


def unmask(masked: int) -> int:
    rotated = (masked - 0xA282EAD8) & 0xFFFFFFFF
    return (rotated >> 17 | rotated << 15) & 0xFFFFFFFF


def records(data: bytes) -> list[bytes]:
    """The records of a TFRecord file, both checksums of each compared."""
    found = []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        assert unmask(struct.unpack("<I", data[8:12])[0]) == slow_crc(data[:8])
        body = data[12 : 12 + length]
        assert unmask(struct.unpack("<I", data[12 + length : 16 + length])[0]) == slow_crc(body)
        found.append(body)
        data = data[16 + length :]
    return found


def fields(data: bytes) -> dict[int, Any]:
    """A protobuf message by field number; each field here stands once."""
    found: dict[int, Any] = {}
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = data[place]
            place += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while place < len(data):
        key = varint()
        kind, number = key & 7, key >> 3
        if kind == 0:
            found[number] = varint()
        elif kind == 2:
            size = varint()
            found[number] = data[place : place + size]
            place += size
        else:
            size, form = (8, "<d") if kind == 1 else (4, "<f")
            (found[number],) = struct.unpack(form, data[place : place + size])
            place += size
    return found


def scalars(data: bytes) -> list[tuple[str, int, float, float]]:
    """(tag, step, value, wall time) of every event after the file's version."""
    version, *rest = [fields(record) for record in records(data)]
    assert version[3] == b"brain.Event:2"
    found = []
    for event in rest:
        value = fields(fields(event[5])[1])
        found.append((value[1].decode(), event[2], value[2], event[1]))
    return found


def test_the_checksum_is_castagnoli_s() -> None:
    assert crc32c(b"123456789") == slow_crc(b"123456789") == 0xE3069283  # the check value of the CRC catalogue
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4
    assert crc32c(b"") == slow_crc(b"") == 0


@pytest.mark.parametrize("step", [0, 1, 127, 128, 16_383, 16_384, 2**31 - 1])
def test_any_step_and_value_comes_back(step: int) -> None:
    points = [("loss", step, 0.25, AT), ("dev_loss", step, None, AT), ("kl", step, 1e300, AT)]
    loss, dev, kl = scalars(b"".join(write_events(AT, points)))
    assert loss == ("loss/train", step, 0.25, AT.timestamp())
    assert dev[0] == "loss/dev" and dev[2] != dev[2]  # not a number
    assert kl[2] == float("inf")


def test_a_run_s_points_are_a_file(client: TestClient, project: Project) -> None:
    with db.transaction() as session:
        run_id = queue.launch(session, ImportPromptsRecipe(shipped="demo"), project_id=project.id).id
        session.add_all(Metric(run_id=run_id, name="loss", step=step, value=1 / (step + 1)) for step in range(6000))
        session.add(Metric(run_id=run_id, name="dev_loss", step=5999, value=None))
    got = client.get(f"/p/demo/runs/{run_id}/tensorboard")
    assert f"preflab-run-{run_id}" in got.headers["content-disposition"] and "tfevents" in str(got.headers)
    found = scalars(got.content)
    assert [step for tag, step, *_ in found if tag == "loss/train"] == list(range(6000))
    assert found[0][:2] == ("loss/dev", 5999)
    assert found[4][2] == pytest.approx(1 / 4, rel=1e-6)
    page = client.get(f"/p/demo/runs/{run_id}/curves?smooth=0.9&beside=3")
    assert f"/p/demo/runs/{run_id}/tensorboard" in page.text
    assert "/curves?smooth=0.9&amp;beside=3" in client.get(f"/p/demo/runs/{run_id}?smooth=0.9&beside=3").text
    assert client.get("/p/demo/runs/999999/tensorboard").status_code == 404
