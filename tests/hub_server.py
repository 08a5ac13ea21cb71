"""A hub of datasets and models on this machine: what the Hugging Face client asks for, answered
from memory.
"""

import base64
import hashlib
import http.server
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pyarrow
import pyarrow.parquet
from toys import ROOT

Files = Mapping[str, bytes]


def table(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Rows as a Parquet file."""
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([dict(row) for row in rows]), out)
    return out.getvalue()


def dataset(configurations: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> Files:
    """The files of a repository whose configurations have the given splits of rows."""
    card, files = ["---", "configs:"], {}
    for name, splits in configurations.items():
        card += [f"- config_name: {name}", "  data_files:"]
        for split, rows in splits.items():
            card += [f"  - split: {split}", f"    path: {name}/{split}-*"]
            files[f"{name}/{split}-00000-of-00001.parquet"] = table(rows)
    return {"README.md": "\n".join([*card, "---", ""]).encode(), **files}


@contextmanager
def serve(repositories: Mapping[tuple[str, str], Files]) -> Iterator[str]:
    """The address of a hub that holds the files of each (repository, revision), and takes more."""
    commits = {key: hashlib.sha1(repr(key).encode()).hexdigest() for key in repositories}
    held = {
        (name, commits[name, revision]): files for (name, revision), files in repositories.items()
    }
    held |= repositories

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_POST(self) -> None:
            said = self.rfile.read(int(self.headers["Content-Length"]))
            body = json.dumps(_taken(self.path, said, held, commits)).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            body, headers = _answer(self.path, held, commits)
            self.send_response(404 if body is None else 200)
            for name, value in {"Content-Length": str(len(body or b"")), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body or b"")

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def printed(url: str, home: Path, code: str) -> str:
    """What `code` prints in a fresh process whose hub is at `url`."""
    kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    place = {"HF_ENDPOINT": url, "HF_HOME": str(home), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=kept | place, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _answer(
    path: str, held: Mapping[tuple[str, str], Files], commits: Mapping[tuple[str, str], str]
) -> tuple[bytes | None, dict[str, str]]:
    path, query = urlparse(path).path, urlparse(path).query
    path = path.removeprefix("/api").removeprefix("/datasets").removeprefix("/models")
    parts = [unquote(part) for part in path.removeprefix("/").split("/")]
    repository, (kind, revision, *inside) = (
        "/".join(parts[:2]),
        (*parts[2:], "", "")[: max(len(parts) - 2, 2)],
    )
    files = held.get((repository, revision or "main"))
    if files is None:
        return None, {
            "X-Error-Code": "RevisionNotFound" if (repository, "main") in held else "RepoNotFound"
        }
    commit = commits.get((repository, revision or "main"), revision)
    name = "/".join(inside)
    if kind == "resolve" and name in files:
        etag = hashlib.sha1(files[name]).hexdigest()
        return files[name], {"ETag": f'"{etag}"', "X-Repo-Commit": commit}
    if kind == "tree":
        return json.dumps(
            _folder(files, name.rstrip("/"), deep="recursive=true" in query.lower())
        ).encode(), {"Content-Type": "application/json"}
    if kind in ("", "revision"):
        siblings = [{"rfilename": file} for file in files]
        told = {"id": repository, "sha": commit, "private": False, "tags": [], "siblings": siblings}
        return json.dumps(told).encode(), {"Content-Type": "application/json"}
    return None, {"X-Error-Code": "EntryNotFound"}


def _taken(
    path: str, said: bytes, held: dict[tuple[str, str], Files], commits: dict[tuple[str, str], str]
) -> dict[str, Any]:
    """What is answered to a request that creates a repository or commits files to one."""
    lines = [json.loads(line) for line in said.splitlines() if line.strip()]
    if path == "/api/repos/create":
        repository = f"{lines[0]['organization']}/{lines[0]['name']}"
        held.setdefault((repository, "main"), {})
        return {"url": f"http://127.0.0.1/{repository}", "name": repository}
    if path == "/api/validate-yaml":
        return {"errors": [], "warnings": []}
    owner, name, kind, revision = path.removeprefix("/api/models/").split("/")
    if kind == "preupload":
        files = [file["path"] for file in lines[0]["files"]]
        regular = {"uploadMode": "regular", "shouldIgnore": False}
        return {"files": [{"path": file, **regular} for file in files]}
    assert kind == "commit", path
    key, oid = (f"{owner}/{name}", revision), hashlib.sha1(said).hexdigest()
    values = [line["value"] for line in lines if line["key"] == "file"]
    new = {value["path"]: base64.b64decode(value["content"]) for value in values}
    held[key] = held[key[0], oid] = {**held[key], **new}
    commits[key] = oid
    return {"commitUrl": "", "commitOid": oid}


def _folder(files: Files, folder: str, *, deep: bool) -> list[dict[str, Any]]:
    begin = f"{folder}/" if folder else ""
    found = {}
    for file, content in files.items():
        if file.startswith(begin):
            first, *deeper = file.removeprefix(begin).split("/")
            size = 0 if deeper else len(content)
            kind = "directory" if deeper else "file"
            oid = hashlib.sha1(file.encode()).hexdigest()
            found[first] = {"type": kind, "path": begin + first, "oid": oid, "size": size}
            if deep:
                found[file] = {"type": "file", "path": file, "oid": oid, "size": len(content)}
    return list(found.values())
