"""Files that people send from a page or through the API: kept below the data folder, then imported by a run."""

import re
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, Request
from starlette.datastructures import FormData, UploadFile

from app.accounts.access import SignedInPolicy
from app.config import settings
from app.db import reading
from app.errors import AppError, Invalid
from app.projects.access import RolePolicy


class TooLarge(AppError):
    """An upload over the limit."""

    status_code = 413


async def _receive(request: Request) -> FormData:
    """The posted form, once its sender may send one and it is not too large.

    Who sends is looked up here already, in a short read: a body is taken from members only, and no transaction stays
    open while a slow upload arrives.
    """
    with reading() as session:
        _RESEARCHER(request, session)
    most = settings().upload_mb * 2**20
    length = request.headers.get("content-length", "")
    if not length.isdigit():
        raise Invalid("The upload does not say how large it is (Content-Length): send it as one multipart form.")
    if int(length) > most:
        raise TooLarge(
            f"The upload has {int(length) // 2**20:,} MB; at most {settings().upload_mb:,} MB are taken "
            "(PREFLAB_UPLOAD_MB). Put the file on the server and give its path instead."
        )
    return await request.form(max_part_size=most)


_RESEARCHER: SignedInPolicy = RolePolicy("researcher")

# Must stand before the policy's dependency among a route's parameters.
Received = Annotated[FormData, Depends(_receive)]


@dataclass(frozen=True)
class Sent:
    """What a form brought: the values of its fields, with `path` pointing at the stored file."""

    values: dict[str, Any]
    path: Path | None

    def drop(self) -> None:
        """Deletes the stored file: the form was refused."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def store_upload(form: FormData, values: dict[str, Any]) -> Sent:
    """Stores the uploaded file or the pasted text, whichever was given, and names it in `path`; raises Invalid."""
    file, text = form.get("file"), form.get("text")
    has_file = isinstance(file, UploadFile) and bool(file.filename)
    has_text = isinstance(text, str) and bool(text.strip())
    given = [
        name
        for name, is_given in (("file", has_file), ("text", has_text), ("path", bool(values.get("path"))))
        if is_given
    ]
    if len(given) != 1:
        said = "Choose a file, paste text, or give a path on the server" + (": one of them only." if given else ".")
        raise Invalid(said, {given[1] if given else "file": [said]})
    if given == ["path"]:
        return Sent(values, None)
    if has_file:
        assert isinstance(file, UploadFile)
        path = _fresh_path(file.filename or "upload")
        with path.open("wb") as out:
            shutil.copyfileobj(file.file, out)
        if not path.stat().st_size:
            path.unlink()
            raise Invalid("The file is empty: choose another one.", {"file": ["is empty"]})
    else:
        path = _fresh_path("pasted")
        path.write_text(str(text), encoding="utf-8", errors="surrogatepass", newline="")
    return Sent({**values, "path": str(path.relative_to(settings().data_path))}, path)


def _fresh_path(name: str) -> Path:
    """A place of its own, so that the file keeps its name (which names the set, and tells its format)."""
    plain = re.sub(r"[^\w.-]+", "-", Path(name.replace("\\", "/")).name).strip(".-")[-80:] or "upload"
    return settings().folder("uploads", uuid.uuid4().hex[:12]) / plain
