"""The cache of `huggingface_hub` laid out by hand, and a stand-in for the hub on this machine."""

from __future__ import annotations

import hashlib
import http.server
import json
import pathlib
import threading
import urllib.parse
from collections.abc import Mapping

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "89abcdef0123456789abcdef0123456789abcdef"


def files_of(folder: pathlib.Path) -> dict[str, bytes]:
    """Content of the files of a directory, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def lay_out(
    cache: pathlib.Path,
    repo: str,
    files: Mapping[str, bytes],
    *,
    commit: str = COMMIT,
    refs: tuple[str, ...] = ("main",),
) -> pathlib.Path:
    """Writes a model into a cache as `huggingface_hub` does; returns its snapshot."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True, exist_ok=True)
    (folder / "blobs").mkdir(exist_ok=True)
    for name, content in files.items():
        blob = folder / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (snapshot / name).symlink_to(pathlib.Path("../../blobs") / blob.name)
    for ref in refs:
        (folder / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
        (folder / "refs" / ref).write_text(commit)
    return snapshot


class Hub:
    """A server of models on the loopback device, with the few answers that a download needs.

    Args:
      models: files of each repository by name.
      gated: repositories whose files are refused.
    """

    def __init__(self, models: Mapping[str, Mapping[str, bytes]], *, gated: tuple[str, ...] = ()):
        self.models, self.gated = models, gated
        self.sent: list[tuple[str, str]] = []  # repository and file of every body
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub._answer(self)

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        parts = [*filter(None, urllib.parse.urlparse(request.path).path.split("/"))]
        api = parts[0] == "api"
        repo, rest = "/".join(parts[2:4] if api else parts[:2]), parts[4 if api else 2 :]
        if repo not in self.models:
            return self._send(request, 401, b"", {"X-Error-Code": "RepoNotFound"})
        kind, revision = rest[0], urllib.parse.unquote(rest[1])
        if revision not in ("main", COMMIT):
            return self._send(request, 404, b"", {"X-Error-Code": "RevisionNotFound"})
        files = self.models[repo]
        if kind == "revision":
            siblings = [{"rfilename": name, "size": len(data)} for name, data in files.items()]
            answer = {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings}
            return self._send(request, 200, json.dumps(answer).encode())
        if kind == "tree":
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": _oid(data)}
                for name, data in files.items()
            ]
            return self._send(request, 200, json.dumps(tree).encode())
        if repo in self.gated:
            return self._send(request, 403, b"", {"X-Error-Code": "GatedRepo"})
        name = "/".join(rest[2:])
        headers = {"ETag": f'"{_oid(files[name])}"', "X-Repo-Commit": COMMIT}
        if request.command == "GET":
            self.sent.append((repo, name))
        return self._send(request, 200, files[name], headers)

    @staticmethod
    def _send(
        request: http.server.BaseHTTPRequestHandler,
        status: int,
        body: bytes,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        request.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            request.send_header(name, value)
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body)


def _oid(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
