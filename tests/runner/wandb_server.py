"""A stand-in for a W&B server: what the client of the installed wandb sends to it, kept.

It answers the requests that a run, a sync and a workspace make, as far as the client needs answers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.stand_in import Answer, Request, listening, said

ACCOUNT = "tester"


@dataclass
class SentRun:
    """A run as the server has it."""

    about: dict[str, Any] = field(default_factory=dict)
    """Name, group, job type and what else describes it."""
    files: dict[str, dict[int, str]] = field(default_factory=dict)
    """Lines by their number of each file that is streamed."""
    uploaded: set[str] = field(default_factory=set)
    code: int | None = None

    @property
    def config(self) -> dict[str, Any]:
        """The config by key."""
        sent = json.loads(self.about["config"])
        return {key: node["value"] for key, node in sent.items() if key != "_wandb"}

    @property
    def history(self) -> list[dict[str, Any]]:
        """The rows, oldest first."""
        lines = self.files.get("wandb-history.jsonl", {})
        return [json.loads(lines[number]) for number in sorted(lines)]

    @property
    def summary(self) -> dict[str, Any]:
        """What the run came to."""
        lines = self.files.get("wandb-summary.json", {0: "{}"})
        return dict(json.loads(lines[max(lines)]))


@dataclass
class Server:
    """The stand-in, at work; `address` is the value of WANDB_BASE_URL."""

    address: str
    runs: dict[str, SentRun] = field(default_factory=dict)
    views: list[dict[str, Any]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    """All that was sent, unpacked."""
    unknown: set[str] = field(default_factory=set)
    """Operations that it does not know."""

    def answer(self, operation: str, given: dict[str, Any]) -> dict[str, Any]:
        """Answer an operation of GraphQL; of one that is not known here nothing is known."""
        match operation:
            case "Viewer":
                user = {"id": "user", "entity": ACCOUNT, "username": ACCOUNT, "flags": "{}"}
                return {"viewer": {**user, "admin": False, "teams": {"edges": []}}}
            case "RunResumeStatus":
                run = self.runs.get(given["name"])
                place = {"name": given["project"], "entity": {"name": ACCOUNT}}
                return {"model": {**place, "id": "project", "bucket": _status(given["name"], run)}}
            case "UpsertBucket":
                run = self.runs.setdefault(given["name"], SentRun())
                run.about |= {key: value for key, value in given.items() if value is not None}
                return {"upsertBucket": {"bucket": _bucket(given, run), "inserted": True}}
            case "CreateRunFiles":
                self.runs[given["run"]].uploaded |= {*given["files"]}
                files = [
                    {"name": name, "uploadUrl": f"{self.address}/upload/{name}"}
                    for name in given["files"]
                ]
                return {"createRunFiles": {"runID": "run", "uploadHeaders": [], "files": files}}
            case "ArtifactType":
                return {"project": None}
            case "CreateArtifact":  # it has it already: nothing more is sent
                artifact = {"id": "artifact", "state": "COMMITTED"}
                latest = {"latestArtifact": {"id": "artifact", "versionIndex": 0}}
                return {"createArtifact": {"artifact": {**artifact, "artifactSequence": latest}}}
            case "UpsertView2":
                self.views.append(given)
                view = {"id": "view", "name": f"nw-{len(self.views)}-v"}
                return {"upsertView": {"view": view, "inserted": True}}
        self.unknown.add(operation)
        return {}

    def stream(self, run_id: str, body: dict[str, Any]) -> None:
        """Keep what a run streams: lines of its files, each with the place of its first."""
        run = self.runs[run_id]
        for name, chunk in body.get("files", {}).items():
            lines = run.files.setdefault(name, {})
            lines |= dict(enumerate(chunk["content"], start=chunk["offset"]))
        if body.get("complete"):
            run.code = body["exitcode"]


def _bucket(given: dict[str, Any], run: SentRun) -> dict[str, Any]:
    project = {"id": "project", "name": run.about["project"], "entity": {"name": ACCOUNT}}
    return {
        "id": "run",
        "name": given["name"],
        "displayName": run.about.get("displayName", given["name"]),
        "description": "",
        "config": run.about.get("config", "{}"),
        "sweepName": None,
        "project": project,
        "historyLineCount": len(run.history),
    }


def _status(name: str, run: SentRun | None) -> dict[str, Any] | None:
    if run is None:
        return None
    lines = {key: len(run.files.get(file, {})) for key, file in _STREAMED.items()}
    tails = {
        "historyTail": json.dumps([json.dumps(row) for row in run.history[-1:]]),
        "eventsTail": "[]",
        "summaryMetrics": json.dumps(run.summary),
    }
    shown = {"id": "run", "name": name, "displayName": run.about["displayName"], "tags": []}
    return {**shown, **lines, **tails, "config": run.about["config"], "wandbConfig": "{}"}


_STREAMED = {
    "historyLineCount": "wandb-history.jsonl",
    "eventsLineCount": "wandb-events.jsonl",
    "logLineCount": "output.log",
}


@contextmanager
def serving() -> Iterator[Server]:
    """Serve on a free port of this machine until the block ends."""
    server = Server("")

    def answer(request: Request) -> Answer:
        server.bodies.append(request.body)
        parts = request.path.split("/")
        if parts[-1] == "graphql":
            asked = request.json()
            operation = asked.get("operationName") or asked["query"].split("(")[0].split()[-1]
            return said({"data": server.answer(operation, asked.get("variables") or {})})
        if parts[-1] == "file_stream":
            server.stream(parts[-2], request.json())
        return Answer()

    with listening(answer) as server.address:
        yield server
