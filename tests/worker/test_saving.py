"""Checkpoint folders: whole or passed over."""

from pathlib import Path

import pytest

from worker.saving import drop_older, is_whole, read_manifest, save_folder, sha256_of, take_newest_whole


def write_two(folder: Path) -> None:
    (folder / "a.bin").write_bytes(b"a" * 10)
    (folder / "sub").mkdir()
    (folder / "sub" / "b.bin").write_bytes(b"b" * 20)


def test_saved_folder_is_whole_and_says_its_hash(tmp_path: Path) -> None:
    folder, sha256 = save_folder(tmp_path / "x", write_two, {"base_sha256": "f00"})
    assert is_whole(folder)
    assert sha256 == sha256_of(folder / "manifest.json")
    manifest = read_manifest(folder)
    assert manifest is not None
    assert manifest["base_sha256"] == "f00"
    assert set(manifest["files"]) == {"a.bin", "sub/b.bin"}
    assert not list(tmp_path.glob(".x*"))


@pytest.mark.parametrize("damage", ["change", "cut", "remove", "no manifest", "broken manifest"])
def test_damage_is_seen(tmp_path: Path, damage: str) -> None:
    folder, _ = save_folder(tmp_path / "x", write_two)
    if damage == "change":
        (folder / "a.bin").write_bytes(b"A" * 10)
    elif damage == "cut":
        (folder / "sub" / "b.bin").write_bytes(b"b" * 19)
    elif damage == "remove":
        (folder / "a.bin").unlink()
    elif damage == "no manifest":
        (folder / "manifest.json").unlink()
    else:
        (folder / "manifest.json").write_text('{"files": {')
    assert not is_whole(folder)


def test_resume_takes_the_newest_that_verifies(tmp_path: Path) -> None:
    for step in (2, 9, 10):
        save_folder(tmp_path / f"state-{step}", write_two)
    (tmp_path / "state-10" / "a.bin").write_bytes(b"half")
    (tmp_path / "state-11").mkdir()  # killed before its manifest
    assert take_newest_whole(tmp_path, "state") == (9, tmp_path / "state-9")
    assert sorted(p.name for p in tmp_path.glob("state-*")) == ["state-2", "state-9"]
    save_folder(tmp_path / "state-10", write_two)
    drop_older(tmp_path, "state", keep=2)
    assert sorted(p.name for p in tmp_path.glob("state-*")) == ["state-10", "state-9"]
    assert take_newest_whole(tmp_path / "none", "state") is None


def test_a_failed_write_leaves_the_old_folder(tmp_path: Path) -> None:
    save_folder(tmp_path / "x", write_two)

    def fail(folder: Path) -> None:
        (folder / "a.bin").write_bytes(b"new")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save_folder(tmp_path / "x", fail)
    assert (tmp_path / "x" / "a.bin").read_bytes() == b"a" * 10
    assert is_whole(tmp_path / "x")
