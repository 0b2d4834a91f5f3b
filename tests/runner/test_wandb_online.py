"""`logger.wandb.mode=online` with W&B's own client and a stand-in for its server."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reports.registry import read_rows
from runner.folder import stored_config
from tests.runner.laboratory import forked
from tests.runner.wandb_server import ACCOUNT, Server, serving

KEY = "0123456789abcdef0123456789abcdef01234567"
TINY = ("experiment=tiny", "name=tiny")
ONLINE = (*TINY, "logger=default", "logger.wandb.mode=online")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The stand-in, to which all processes that are started send."""
    with serving() as it:
        monkeypatch.setenv("WANDB_BASE_URL", it.address)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        yield it


def folder_of(outputs: Path) -> Path:
    (folder,) = (outputs / "tiny").iterdir()
    return folder


def rows(folder: Path) -> list[dict[str, float]]:
    """What metrics.csv holds, without empty cells."""
    found = read_rows(folder / "metrics.csv")
    return [{name: float(cell) for name, cell in row.items() if cell} for row in found]


def sent_rows(history: list[dict[str, Any]]) -> list[dict[str, float]]:
    """The numbers of W&B's rows, without its own."""
    return [
        {name: v for name, v in row.items() if isinstance(v, int | float) and name[0] != "_"}
        for row in history
    ]


def test_a_run_is_sent_while_it_runs(tmp_path: Path, server: Server) -> None:
    """Every row of metrics.csv, the job's config, the table of its end; never the key."""
    pictures = "+callbacks.samples={_target_: tests.runner.tiny.Pictures}"
    code, said = forked(tmp_path, *ONLINE, pictures)
    assert code == 0, said
    folder = folder_of(tmp_path)
    record = json.loads((folder / "run.json").read_text())
    ((run_id, run),) = server.runs.items()
    assert run_id == record["id"]
    about = {key: run.about[key] for key in ("project", "groupName", "displayName", "jobType")}
    assert [*about.values()] == ["frugal", "tiny", folder.name, "train"]
    assert run.code == 0
    assert set(run.config) - {"arm", "experiment"} == set(stored_config(folder))
    assert run.config["arm"] == record["arm"]
    sent = [row for row in sent_rows(run.history) if len(row) > 1]
    for row, kept in zip(sent, rows(folder), strict=True):
        assert row == pytest.approx(kept)
    figures = {name: run.summary[name] for name in record["metrics"] if name in run.summary}
    assert figures == pytest.approx({name: record["metrics"][name] for name in figures})
    assert {"val/loss", "seconds"} <= figures.keys()
    assert any(name.startswith("media/table/val/samples") for name in run.uploaded)
    assert any(name.startswith("media/images/plots/square") for name in run.uploaded)
    assert not any(KEY.encode() in body for body in server.bodies)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(KEY.encode() in path.read_bytes() for path in files)


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_as_the_same_run(tmp_path: Path, server: Server) -> None:
    stop = "+callbacks.kill={_target_: tests.runner.tiny.Kill, at: 22, name: SIGTERM}"
    code, said = forked(tmp_path, *ONLINE, stop)
    assert code != 0, said
    code, said = forked(tmp_path, *ONLINE, "resume=auto")
    assert code == 0, said
    (run,) = server.runs.values()
    assert run.code == 0
    steps = [row["step"] for row in sent_rows(run.history) if "train/loss" in row]
    assert steps == [5, 10, 15, 20, 25, 30, 35, 40]


@pytest.mark.slow
def test_a_server_that_cannot_be_reached_is_said(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "3")
    code, said = forked(tmp_path, *ONLINE)
    assert code == 1
    assert "Failed: logger.wandb.mode=online: " in said
    assert "Take offline" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_an_offline_run_is_sent_later(tmp_path: Path, server: Server) -> None:
    code, said = forked(tmp_path, *TINY, "logger=default")
    assert code == 0, said
    assert not server.runs
    folder = folder_of(tmp_path)
    (offline,) = tmp_path.glob("wandb/offline-run-*")
    done = subprocess.run(
        [sys.executable, "-m", "wandb", "sync", str(offline)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    ((run_id, run),) = server.runs.items()
    assert folder.name.endswith(run_id)
    sent = [row for row in sent_rows(run.history) if len(row) > 1]
    assert [row["step"] for row in sent] == [row["step"] for row in rows(folder)]


@pytest.mark.slow
def test_workspaces_are_written_into_the_project(tmp_path: Path, server: Server) -> None:
    pytest.importorskip("wandb_workspaces", reason="the extra dashboard is not installed")
    code, said = forked(tmp_path, "task=dashboard", f"logger.wandb.entity={ACCOUNT}")
    assert code == 0, said
    assert [view["displayName"] for view in server.views] == ["EST", "SAT", "DLCH", "DELTA"]
    assert {(view["entityName"], view["projectName"]) for view in server.views} == {
        (ACCOUNT, "frugal")
    }
