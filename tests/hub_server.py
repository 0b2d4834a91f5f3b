"""A stand-in for the Hugging Face hub: repositories that its client reads, makes and writes."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.stand_in import Answer, Request, listening, said

COMMIT = "0" * 40


@dataclass
class Hub:
    """The stand-in, at work; `address` is the value of HF_ENDPOINT."""

    address: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Files by path, of `models/OWNER/NAME` and `datasets/OWNER/NAME`."""
    unknown: set[str] = field(default_factory=set)
    """Paths that it does not know."""

    def answer(self, request: Request) -> Answer:
        """Answer what the client needs."""
        path = request.path
        if path == "api/repos/create":
            given = request.json()
            full = "/".join(filter(None, (given.get("organization"), given["name"])))
            self.repositories.setdefault(f"models/{full}", {})
            return said({"url": f"{self.address}/{full}", "name": full, "id": full})
        if path == "api/validate-yaml":
            return said({"errors": [], "warnings": []})
        file = re.fullmatch(r"(datasets/)?([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
        if file is not None:
            return self._file(f"{file[1] or 'models/'}{file[2]}", file[3], request)
        about = re.fullmatch(r"api/((?:datasets|models)/[^/]+/[^/]+)/?(.*)", path)
        if about is not None and about[1] in self.repositories:
            return self._about(about[1], about[2].split("/"), request)
        self.unknown.add(f"{request.method} {path}")
        return Answer(b"", 404, {"X-Error-Code": "RepoNotFound"})

    def _about(self, place: str, asked: list[str], request: Request) -> Answer:
        files = self.repositories[place]
        match asked[0]:
            case "" | "revision":
                siblings = [{"rfilename": name} for name in files]
                about = {"id": place.partition("/")[2], "sha": COMMIT, "siblings": siblings}
                return said({**about, "private": False, "tags": [], "downloads": 0, "likes": 0})
            case "tree":
                recursive = request.query.get("recursive", "").lower() == "true"
                return said(_tree(files, "/".join(asked[2:]), recursive))
            case "paths-info":
                given = request.json()["paths"]
                return said([_entry(name, files[name]) for name in given if name in files])
            case "preupload":
                names = [each["path"] for each in request.json()["files"]]
                modes = [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]
                return said({"files": modes})
            case "commit":
                for line in request.body.splitlines():
                    node = json.loads(line)
                    if node["key"] == "file":
                        files[node["value"]["path"]] = base64.b64decode(node["value"]["content"])
                where = f"{self.address}/{place}/commit/{COMMIT}"
                return said({"commitUrl": where, "commitOid": COMMIT, "success": True})
        self.unknown.add(f"{request.method} {request.path}")
        return Answer(b"", 404, {"X-Error-Code": "EntryNotFound"})

    def _file(self, place: str, name: str, request: Request) -> Answer:
        if place not in self.repositories or name not in self.repositories[place]:
            error = "EntryNotFound" if place in self.repositories else "RepoNotFound"
            return Answer(b"", 404, {"X-Error-Code": error, "X-Repo-Commit": COMMIT})
        content = self.repositories[place][name]
        headers = {"ETag": f'"{_digest(content)}"', "X-Repo-Commit": COMMIT}
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range") or "")
        if part is not None:
            first, last = int(part[1]), int(part[2] or len(content) - 1)
            span = f"bytes {first}-{min(last, len(content) - 1)}/{len(content)}"
            return Answer(content[first : last + 1], 206, {**headers, "Content-Range": span})
        return Answer(content, 200, headers)


def _digest(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


def _entry(name: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": name, "size": len(content), "oid": _digest(content)}


def _tree(files: dict[str, bytes], top: str, recursive: bool) -> list[dict[str, Any]]:
    """List what lies in a folder of a repository, with what lies in its folders if asked for."""
    prefix = f"{top}/" if top else ""
    found: dict[str, dict[str, Any]] = {}
    for name, content in files.items():
        if not name.startswith(prefix):
            continue
        parts = name.removeprefix(prefix).split("/")
        for depth in range(1, len(parts)):
            folder = prefix + "/".join(parts[:depth])
            if depth == 1 or recursive:
                found[folder] = {"type": "directory", "path": folder, "size": 0, "oid": COMMIT}
        if recursive or len(parts) == 1:
            found[name] = _entry(name, content)
    return [*found.values()]


@contextmanager
def serving() -> Iterator[Hub]:
    """Serve on a free port of this machine until the block ends."""
    hub = Hub()
    with listening(hub.answer) as hub.address:
        yield hub
