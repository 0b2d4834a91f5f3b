"""Runs are found by folder, pattern or id; what is broken or foreign is skipped by its name."""

import io
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from reports.configs import arm_hash, differences
from reports.registry import find, read, resolve
from reports.run_record import NoRun
from reports.tables import jobs, moment, without_constants
from runner.__main__ import main
from tests.reports.study import make_run, make_study


def command(*words: str) -> tuple[int, str]:
    console = Console(file=io.StringIO(), width=200)
    code = main(words, console)
    assert isinstance(console.file, io.StringIO)
    return code, console.file.getvalue()


def test_broken_and_foreign_folders_are_skipped_by_name(tmp_path: Path) -> None:
    good = make_run(tmp_path, "good", 1)
    damaged = make_run(tmp_path, "damaged", 1)
    (damaged / "run.json").write_text('{"id": "x", "task"')
    other = make_run(tmp_path, "other", 1)
    (other / "run.json").write_text(json.dumps({"version": 3}))
    listed = make_run(tmp_path, "listed", 1, record={"metrics": [1, 2]})
    foreign = tmp_path / "good" / "notes"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("none of ours")
    sweep = tmp_path / "multirun" / "today"
    sweep.mkdir(parents=True)
    (sweep / "multirun.yaml").write_text("")
    runs, skipped = find([tmp_path])
    assert [run.folder for run in runs] == [good]
    named = {
        folder
        for folder in (damaged, other, listed, foreign, sweep)
        for line in skipped
        if line.startswith(str(folder))
    }
    assert named == {damaged, other, listed, foreign}
    assert len(skipped) == 4


def test_places_are_patterns_folders_or_runs_and_a_run_is_found_once(tmp_path: Path) -> None:
    make_study(tmp_path)
    folder = next((tmp_path / "est").iterdir())
    assert len(find([f"{tmp_path}/*"])[0]) == 6
    assert len(find([f"{tmp_path}/est*/*", tmp_path / "est", folder])[0]) == 3
    with pytest.raises(NoRun, match="no match"):
        find([tmp_path / "nothing*"])


def test_runs_behind_links_in_odd_places_and_at_home_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = tmp_path / "runs [1] = 'a\u00e4\n\u201cb'"
    make_run(odd, "x", 1)
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "x").symlink_to(odd / "x")
    (tmp_path / "outputs" / "x" / "loop").symlink_to(tmp_path / "outputs")
    monkeypatch.setenv("HOME", str(tmp_path))
    for place in (odd, tmp_path / "outputs", tmp_path, "~/outputs", "~/out*"):
        assert len(find([place])[0]) == 1, place


def test_a_run_is_resolved_by_folder_file_and_beginning_of_its_id(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "a", 1, record={"id": "abc1"})
    make_run(tmp_path, "a", 2, record={"id": "abd2"})
    for word in (str(folder), str(folder / "metrics.csv"), "abc1", "abc"):
        assert resolve(word, tmp_path).id == "abc1"
    with pytest.raises(NoRun, match="2 runs"):
        resolve("ab", tmp_path)
    with pytest.raises(NoRun, match="neither"):
        resolve("x", tmp_path)


def test_records_of_older_versions_are_read(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "old", 1)
    content = json.loads((folder / "run.json").read_text())
    del content["name"], content["command"]
    content["experiment"] = "old"
    for row in content["ledgers"].values():
        row["savings"] = [{k: v for k, v in s.items() if k != "estimated"} for s in row["savings"]]
    (folder / "run.json").write_text(json.dumps(content))
    run = read(folder)
    assert (run.name, run.experiment, run.own_command) == ("old", None, None)


def test_the_command_of_a_sweeps_job_is_its_own(tmp_path: Path) -> None:
    record = {"sweep": {"id": "s"}, "overrides": ["experiment=est", "name=a b", "seed=2"]}
    run = read(
        make_run(tmp_path, "a", 2, record={**record, "command": "python run.py -m seed=1,2"})
    )
    assert run.own_command == "python run.py experiment=est 'name=a b' seed=2"


def test_an_arm_is_the_config_without_seeds_names_and_places() -> None:
    config = {
        "seed": 1,
        "name": "a",
        "paths": {"run_dir": "/out/a/1"},
        "module": {"lr": 1.0, "parts": [{"seed": 1}]},
        "callbacks": {"checkpoint": {"folder": "/out/a/1/checkpoints"}},
    }
    other = {
        "seed": 2,
        "name": "b",
        "paths": {"run_dir": "/out/b/2"},
        "module": {"lr": 1.0, "parts": [{"seed": 2}]},
        "callbacks": {"checkpoint": {"folder": "/out/b/2/checkpoints"}},
    }
    assert arm_hash(config) == arm_hash(other)
    other["module"] = {"lr": 2.0, "parts": [{"seed": 2}]}
    other["callbacks"] = {"checkpoint": None}
    assert arm_hash(config) != arm_hash(other)
    found = differences([config, other])
    assert found["module.lr"] == [1.0, 2.0]
    assert set(found) == {"module.lr", "callbacks.checkpoint"}


def test_ls_show_and_compare_say_what_the_records_say(tmp_path: Path) -> None:
    make_study(tmp_path)
    dense, est = (str(next((tmp_path / name).glob("*_00-00-01-*"))) for name in ("dense", "est"))
    code, listed = command("ls", str(tmp_path))
    assert (code, listed.count("finished")) == (0, 6)
    code, shown = command("show", est)
    assert code == 0
    assert "python run.py name=est seed=1" in shown
    assert "10 s (estimated)" in shown
    failed = make_run(tmp_path, "failed", 1, record={"status": "failed", "reason": "no memory"})
    assert "no memory" in command("show", str(failed))[1]
    code, compared = command("compare", dense, est)
    row = next(line for line in compared.splitlines() if "callbacks.est" in line)
    assert [cell.strip() for cell in row.strip("\u2502").split("\u2502")] == [
        "callbacks.est",
        "-",
        "EST",
    ]
    assert "25.0 %" in compared


def test_a_missing_run_is_said_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "zzz", "--in", str(tmp_path)]) == 2
    assert "zzz: neither a run folder nor the id" in capsys.readouterr().err


def test_markup_and_escapes_in_names_are_shown_and_not_obeyed(tmp_path: Path) -> None:
    make_run(tmp_path, "[bold]x", 1, record={"command": "evil \x1b[2J"})
    assert "[bold]x" in command("ls", str(tmp_path))[1]
    shown = command("show", str(next((tmp_path / "[bold]x").iterdir())))[1]
    assert "\\x1b[2J" in shown
    assert "\x1b" not in shown


def test_the_list_needs_neither_torch_nor_lightning() -> None:
    code = "import sys, runner.__main__; print({'torch', 'hydra', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_hundred_runs_are_listed_in_a_tenth_of_the_time_for_a_thousand(tmp_path: Path) -> None:
    for seed in range(100):
        make_run(tmp_path, f"arm-{seed % 10}", seed)
    began = time.process_time()
    runs, _ = find([tmp_path])
    assert len(runs) == 100
    assert time.process_time() - began < 0.2


def test_a_sweeps_table_shows_what_its_jobs_were_told_and_reached(tmp_path: Path) -> None:
    for seed in (1, 2):
        make_run(tmp_path, "x", seed, record={"experiment": "dense"})
        method = {"_target_": "a.B"}
        make_run(tmp_path, "x", seed, loss=3.5, method=method, record={"experiment": "est"})
    console = Console(file=io.StringIO(), width=120)
    jobs(console, find([tmp_path])[0], {3: "killed"})
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "Jobs of the sweep: 4 finished, 1 killed." in shown
    heading = next(line for line in shown.splitlines() if "experiment" in line)
    names = [cell.strip() for cell in heading.strip("\u2503").split("\u2503")]
    told = ["job", "id", "experiment", "seed", "status", "time"]
    assert names == [*told, "val/loss", "val/perplexity"]


def test_a_sweeps_table_hides_no_setting(tmp_path: Path) -> None:
    """Neither one that ends like another, or like a column, nor without a word those beyond six."""
    for seed in (1, 2):
        folder = make_run(tmp_path, "x", 1, loss=float(seed))
        config = yaml.safe_load((folder / "config.yaml").read_text())
        config["module"] |= {"optimizer": {"name": seed, "lr": seed}, "other": {"lr": seed}}
        config["trainer"] |= dict.fromkeys("abcd", seed)
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    console = Console(file=io.StringIO(), width=200)
    jobs(console, find([tmp_path])[0], {})
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    for word in ("module.optimizer.name", "module.optimizer.lr", "module.other.lr"):
        assert word in shown
    assert "They also differ in d." in shown


def test_times_are_shown_as_this_machines_clocks_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert moment("2026-01-01T20:30:59+00:00") == "2026-01-02 05:30"
        assert [moment(None), moment("yesterday")] == ["", "yesterday"]
    finally:
        monkeypatch.undo()
        time.tzset()


def test_constants_are_left_out_unless_they_are_results(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "a", 1)
    (folder / "metrics.csv").write_text("step,lr,val/exact,train/loss\n1,0.1,0,2\n2,0.1,0,1\n")
    metrics = {"lr": 0.1, "val/exact": 0.0, "train/loss": 1.0, "seconds": 3.0}
    shown = without_constants(metrics, read(folder))
    assert list(shown) == ["val/exact", "train/loss", "seconds"]
