"""Downloads of exported checkpoints: a tar file, streamed as it is packed, so that 16 GB need no second copy."""

import tarfile
from collections.abc import Iterator
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse

from app.checkpoints.models import Checkpoint
from app.config import settings
from app.db import Db, get
from app.errors import NotFound
from app.html import html
from app.projects.access import Member, Researcher, Viewer
from app.runs.models import Run

router = APIRouter()
PIECE = 2**20


def project_export(session: Db, member: Member, run_id: int) -> tuple[Run, Path]:
    """An export run of this project and its folder; raises NotFound."""
    run = get(session, Run, run_id)
    if run.project_id != member.project.id or run.kind != "export":
        raise NotFound(f"There is no export {run_id}.")
    return run, settings().data_path / "exports" / f"run-{run_id}"


def tar_pieces(folder: Path, name: str) -> Iterator[bytes]:
    """The folder as an uncompressed tar below `name/`, a megabyte at a time."""
    for path in sorted(folder.iterdir()):
        info = tarfile.TarInfo(f"{name}/{path.name}")
        info.size, info.mtime, info.mode = path.stat().st_size, int(path.stat().st_mtime), 0o644
        yield info.tobuf(tarfile.GNU_FORMAT)
        with path.open("rb") as file:
            while piece := file.read(PIECE):
                yield piece
        yield b"\0" * (-info.size % tarfile.BLOCKSIZE)
    yield b"\0" * (2 * tarfile.BLOCKSIZE)


def say_loading(run: Run, row: Checkpoint, names: set[str]) -> str:
    """How to load what was exported, in the words of the library that knows it."""
    folder = f"preflab-export-{run.id}"
    is_adapter = "adapter_model.safetensors" in names
    if "bi_encoder.json" in names:
        base = " --set base=ID_OF_ITS_BASE" if is_adapter else ""
        return f"preflab import checkpoint {folder} --set role=reward{base}"
    if is_adapter:
        return f'# an adapter needs its base; the model card names it\nPeftModel.from_pretrained(base, "{folder}")'
    kind = "SequenceClassification" if row.role == "reward" else "CausalLM"
    return f'AutoModelFor{kind}.from_pretrained("{folder}")'


@router.get("/p/{project}/runs/{run_id}/panel/export")
def show_export_panel(request: Request, member: Viewer, session: Db, run_id: int) -> Response:
    """What was exported, where it lies, and how to load it."""
    run, folder = project_export(session, member, run_id)
    files = [(path.name, path.stat().st_size) for path in sorted(folder.iterdir())] if folder.is_dir() else []
    place = f"exports/run-{run_id}"
    loading = say_loading(run, get(session, Checkpoint, int(run.recipe["checkpoint"])), {name for name, _ in files})
    return html(request, "checkpoints/_export.html", run=run, files=files, place=place, loading=loading)


@router.get("/p/{project}/runs/{run_id}/export.tar")
def download_export(member: Researcher, session: Db, run_id: int) -> Response:
    """The exported folder as a tar file."""
    run, folder = project_export(session, member, run_id)
    if run.status != "done" or not folder.is_dir():
        raise NotFound("This export is not written yet, or its folder is gone: export the checkpoint again.")
    headers = {"content-disposition": f'attachment; filename="preflab-export-{run_id}.tar"'}
    return StreamingResponse(
        tar_pieces(folder, f"preflab-export-{run_id}"), media_type="application/x-tar", headers=headers
    )
