"""Writing checkpoint folders so that a half-written one is never taken for a whole one.

A folder counts only with a manifest that names every file's hash and was written last. Final checkpoints are
written beside their place and renamed; resume states written by a foreign trainer get their manifest when the
trainer is done with them. A folder without a manifest that verifies is passed over, whatever its name says.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def seal_folder(folder: Path, facts: Mapping[str, Any] | None = None) -> str:
    """Flushes every file and writes the manifest last; returns the manifest's sha256.

    `facts` (role, the base's manifest hash, the step, …) become part of the manifest and so of its hash.
    """
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    for path in files:
        _fsync(path)
    manifest = {
        **(facts or {}),
        "files": {str(p.relative_to(folder)): {"sha256": sha256_of(p), "bytes": p.stat().st_size} for p in files},
    }
    pending = folder / f".{MANIFEST}"
    pending.write_text(json.dumps(manifest, indent=1, sort_keys=True), encoding="utf-8")
    _fsync(pending)
    pending.replace(folder / MANIFEST)
    _fsync(folder)
    return sha256_of(folder / MANIFEST)


def save_folder(
    target: Path, write: Callable[[Path], None], facts: Mapping[str, Any] | None = None
) -> tuple[Path, str]:
    """Lets `write` fill a folder beside `target`, seals it and renames it into place.

    Returns the folder and its manifest's sha256. A whole `target` from an earlier attempt is replaced.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    pending = target.with_name(f".{target.name}.{os.getpid()}.partial")  # no other process writes into it
    shutil.rmtree(pending, ignore_errors=True)
    pending.mkdir()
    write(pending)
    manifest_sha256 = seal_folder(pending, facts)
    if target.exists():
        shutil.rmtree(target)
    pending.rename(target)
    _fsync(target.parent)
    return target, manifest_sha256


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest, or None where there is none that can be read."""
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("files"), dict) else None


def is_whole(folder: Path) -> bool:
    """Whether every file the manifest names is there with its hash."""
    manifest = read_manifest(folder)
    if manifest is None:
        return False
    return all(
        (folder / name).is_file() and sha256_of(folder / name) == known["sha256"]
        for name, known in manifest["files"].items()
    )


def _numbered(parent: Path, prefix: str) -> list[tuple[int, Path]]:
    """(step, folder) of every `prefix-<step>`, oldest first."""
    steps = ((folder.name.removeprefix(f"{prefix}-"), folder) for folder in parent.glob(f"{prefix}-*"))
    return sorted((int(step), folder) for step, folder in steps if step.isdigit())


def take_newest_whole(parent: Path, prefix: str) -> tuple[int, Path] | None:
    """(step, folder) of the newest `prefix-<step>` that verifies.

    Broken newer ones are deleted: they would otherwise count as the newest when old ones are dropped.
    """
    for step, folder in reversed(_numbered(parent, prefix)):
        if is_whole(folder):
            return step, folder
        shutil.rmtree(folder)
    return None


def drop_older(parent: Path, prefix: str, keep: int) -> None:
    """Deletes all but the `keep` newest `prefix-<step>` folders, and what was left half-written."""
    for folder in [*(folder for _, folder in _numbered(parent, prefix)[:-keep]), *parent.glob(f".{prefix}-*.partial")]:
        shutil.rmtree(folder, ignore_errors=True)


def write_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """Weights (safetensors), config and tokenizer into `folder`."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
