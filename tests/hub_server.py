"""A real HTTP server that speaks the hub's protocol.

It takes what huggingface_hub uploads (create a repository, large files by LFS, one commit), and answers what
huggingface_hub and datasets ask when they read: what a repository is at a revision, its tree, its files in ranges.
"""

import base64
import json
import re
import threading
from dataclasses import dataclass, field
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import unquote

TOKEN = "hf_stand_in"
API = re.compile(r"/api/(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+?)"
                 r"(?:/(?P<verb>revision|tree|paths-info|auth-check)(?:/(?P<rest>.*))?)?")  # fmt: skip
RESOLVE = re.compile(r"/(?P<kind>datasets/)?(?P<name>[^/]+/[^/]+)/resolve/(?P<rest>.+)")


@dataclass
class Stored:
    """A repository that can be read: its commits, the newest last."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    is_private: bool = False
    is_gated: bool = False
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Adds a commit of these files; returns its hash."""
        key = sha1(repr((len(self.commits), sorted(files))).encode()).hexdigest()
        self.commits[key] = files
        self.branches[branch] = key
        return key


class Hub:
    """What was pushed: `files` by repository and name, as committed; `private` repositories.

    What can be read: `repositories` by kind and name. `asked` are the files that were asked for, in order; a file in
    `held` is sent by half and then waits until `let_go` is set.
    """

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.objects: dict[str, bytes] = {}
        self.refused = 0
        self.repositories: dict[str, Stored] = {}
        self.asked: list[str] = []
        self.held: set[str] = set()
        self.let_go = threading.Event()
        self.failing: dict[str, int] = {}  # repository → the status it answers with
        self.members = {TOKEN}  # tokens of those who were let into gated repositories
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"] or 0))
                (hub.read if "/paths-info/" in self.path else hub.answer)(self, body)

            def do_PUT(self) -> None:
                hub.objects[self.path.rpartition("/")[2]] = self.rfile.read(int(self.headers["Content-Length"]))
                say(self, 200, {})

            def do_GET(self) -> None:
                hub.read(self, b"")

            def do_HEAD(self) -> None:
                hub.read(self, b"")

            def log_message(self, *_: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.origin = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.let_go.set()
        self._server.shutdown()
        self._server.server_close()

    def add(self, kind: str, name: str, files: dict[str, bytes], *, private: bool = False, gated: bool = False) -> str:
        """Makes a repository, or adds a commit to it; returns the commit's hash. `kind` is models or datasets."""
        found = self.repositories.setdefault(f"{kind}/{name}", Stored(is_private=private, is_gated=gated))
        return found.commit(files)

    def read(self, request: Any, body: bytes) -> None:
        """Answers what is asked of a repository, or says as the hub does why not."""
        path = unquote(request.path.partition("?")[0])
        asked = API.fullmatch(path) or RESOLVE.fullmatch(path)
        if asked is None:
            return say(request, 404, {"error": "no such page"})
        kind = "datasets" if (asked["kind"] or "").startswith("datasets") else "models"
        is_file = asked.re is RESOLVE
        stored = self.repositories.get(f"{kind}/{asked['name']}")
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if asked["name"] in self.failing:
            return refuse(request, self.failing[asked["name"]], "", "not just now")
        if token and token not in {TOKEN, "hf_of_a_stranger"}:
            return refuse(request, 401, "", "Invalid credentials in Authorization header")
        if stored is None or (stored.is_private and token != TOKEN):
            return refuse(request, 404 if token else 401, "RepoNotFound", "Repository not found")
        is_closed = is_file or ("verb" in asked.groupdict() and asked["verb"] == "auth-check")
        if stored.is_gated and token not in self.members and is_closed:
            return refuse(request, 403 if token else 401, "GatedRepo", "Access to this repository is restricted")
        revision, rest = split_revision(stored, asked["rest"] or "")
        commit = stored.branches.get(revision, revision)
        if commit not in stored.commits:
            return refuse(request, 404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if is_file:
            return self._send_file(request, stored.commits[commit].get(rest), rest, commit)
        return say(request, 200, self._describe(asked, stored, commit, rest, body, request.path))

    def _describe(
        self, asked: re.Match[str], stored: Stored, commit: str, rest: str, body: bytes, url: str
    ) -> Any:  # fmt: skip
        files = stored.commits[commit]
        is_recursive = "recursive=true" in url.lower()
        if asked["verb"] in (None, "revision"):
            return {
                "id": asked["name"], "sha": commit, "private": stored.is_private, "tags": [], "downloads": 0,
                "gated": "manual" if stored.is_gated else False,
                "siblings": [{"rfilename": name, "size": len(data)} for name, data in files.items()],
            }  # fmt: skip
        if asked["verb"] == "tree":
            return tree(files, rest, is_recursive=is_recursive)
        if asked["verb"] == "auth-check":
            return {}
        wanted = [unquote(one) for one in re.findall(r"paths=([^&]*)", body.decode())] or json.loads(body)["paths"]
        folders = {name.rpartition("/")[0] for name in files}
        return [entry(one, files.get(one)) for one in wanted if one in files or one in folders]

    def _send_file(self, request: Any, data: bytes | None, name: str, commit: str) -> None:
        if data is None:
            refuse(request, 404, "EntryNotFound", "Entry not found", commit)
            return
        if request.command == "GET":
            self.asked.append(name)
        start, end = 0, len(data)
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
        if span:
            start, end = int(span[1]), min(int(span[2] or len(data)) + 1, len(data))
        request.send_response(206 if span else 200)
        for key, value in {
            "ETag": f'"{sha1(data).hexdigest()}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes",
            "Content-Length": str(end - start), "Content-Type": "application/octet-stream",
        }.items():  # fmt: skip
            request.send_header(key, value)
        if span:
            request.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        request.end_headers()
        if request.command == "HEAD":
            return
        if name in self.held:
            middle = (start + end) // 2
            request.wfile.write(data[start:middle])
            request.wfile.flush()
            self.let_go.wait(60)
            start = middle
        request.wfile.write(data[start:end])

    def answer(self, request: Any, body: bytes) -> None:
        if TOKEN not in request.headers.get("Authorization", "") and "/lfs/" not in request.path:
            self.refused += 1
            return say(request, 401, {"error": "Invalid username or password."})
        path = request.path.partition("?")[0]
        if path == "/api/validate-yaml":  # of the card's head
            return say(request, 200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            self.files.setdefault(name, {})
            self.private |= {name} if asked.get("visibility") == "private" else set()
            return say(request, 200, {"url": f"{self.origin}/{name}"})
        if path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            modes = [
                {"path": f["path"], "shouldIgnore": False,
                 "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular"} for f in files
            ]  # fmt: skip
            return say(request, 200, {"files": modes})
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**one, "actions": {"upload": {"href": f"{self.origin}/store/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            return say(request, 200, {"transfer": "basic", "objects": objects})
        assert path.endswith("/commit/main"), path
        name = path.removeprefix("/api/models/").removesuffix("/commit/main")
        self._commit(name, body)
        return say(
            request, 200, {"commitUrl": f"{self.origin}/{name}/commit/1", "commitOid": "1" * 40, "success": True}
        )

    def _commit(self, name: str, body: bytes) -> None:
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.files[name][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                found = self.objects[value["oid"]]
                assert sha256(found).hexdigest() == value["oid"]
                self.files[name][value["path"]] = found


def say(request: Any, status: int, answer: Any, headers: dict[str, str] | None = None) -> None:
    body = json.dumps(answer).encode()
    request.send_response(status)
    for name, value in (headers or {}).items():
        request.send_header(name, value)
    request.send_header("Content-Type", "application/json")
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(body)


def refuse(request: Any, status: int, code: str, message: str, commit: str = "") -> None:
    """As the hub does: what is wrong stands in the headers."""
    more = {"X-Error-Code": code, "X-Error-Message": message, "X-Repo-Commit": commit}
    say(request, status, {"error": message}, {name: value for name, value in more.items() if value})


def split_revision(stored: Stored, rest: str) -> tuple[str, str]:
    """The revision (a branch's name may hold slashes) and what stands behind it."""
    for branch in sorted(stored.branches, key=len, reverse=True):
        if rest == branch or rest.startswith(f"{branch}/"):
            return branch, rest[len(branch) + 1 :]
    revision, _, path = (rest or "main").partition("/")
    return revision, path


def tree(files: dict[str, bytes], folder: str, *, is_recursive: bool) -> list[dict[str, Any]]:
    """What stands in a folder, or below it."""
    start = f"{folder}/" if folder else ""
    below = [name[len(start) :] for name in files if name.startswith(start)]
    folders = {"/".join(parts[:n]) for parts in (name.split("/") for name in below) for n in range(1, len(parts))}
    shown = [one for one in [*below, *sorted(folders)] if is_recursive or "/" not in one]
    return [entry(start + one, files.get(start + one)) for one in shown]


def entry(name: str, data: bytes | None) -> dict[str, Any]:
    """A file or folder as the tree tells it."""
    if data is None:
        return {"type": "directory", "path": name, "oid": "0" * 40, "size": 0}
    return {"type": "file", "path": name, "oid": sha1(data).hexdigest(), "size": len(data)}
