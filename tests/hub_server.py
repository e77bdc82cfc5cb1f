"""A real HTTP server that takes what huggingface_hub uploads: create a repository, large files by LFS, one commit."""

import base64
import json
import threading
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

TOKEN = "hf_stand_in"


class Hub:
    """What was pushed: `files` by repository and name, as committed; `private` repositories."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.objects: dict[str, bytes] = {}
        self.refused = 0
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                hub.answer(self, self.rfile.read(int(self.headers["Content-Length"] or 0)))

            def do_PUT(self) -> None:
                hub.objects[self.path.rpartition("/")[2]] = self.rfile.read(int(self.headers["Content-Length"]))
                say(self, 200, {})

            def do_GET(self) -> None:
                say(self, 404, {"error": "nothing to read here"})

            def log_message(self, *_: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.origin = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._server.shutdown()
        self._server.server_close()

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


def say(request: Any, status: int, answer: Any) -> None:
    body = json.dumps(answer).encode()
    request.send_response(status)
    request.send_header("Content-Type", "application/json")
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)
