"""run.json says what was run, by whose command, on what, and how long: all of it, and no secret."""

import json
import os
from fnmatch import fnmatch
from pathlib import Path

import pytest

from reports import run_record
from reports.run_record import (
    FILES,
    NoRun,
    RunRecord,
    SweepJob,
    read_measured,
    read_record,
    without_secrets,
)
from runner.job import Origin
from tests.runner.laboratory import ROOT, command, run

# As the first version wrote it.
OLD = {
    "id": "abcd1234",
    "experiment": "est_gpt2",
    "task": "train",
    "status": "finished",
    "reason": None,
    "seed": 3,
    "git": {"commit": "0" * 40, "dirty": False},
    "metrics": {"val/loss": 4.25, "train/loss": None},
    "seconds": 9,
}


def test_the_page_about_run_folders_is_written_from_the_type() -> None:
    page = (ROOT / "docs" / "RUN_FOLDER.md").read_text()
    assert page == run_record.described(), "python -m reports.run_record"
    names = set(run_record._hints(RunRecord))
    assert names <= {line.split("`")[1] for line in page.splitlines() if line.startswith("| `")}


def test_an_older_record_is_read(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({**OLD, "nobody knows": 1}))
    record = read_record(tmp_path)
    assert (record.name, record.experiment, record.seconds) == ("est_gpt2", None, 9)
    assert record.metrics == {"val/loss": 4.25, "train/loss": None}
    assert record.git.commit == "0" * 40
    assert (record.sweep, record.phases, record.hardware.cores) == (None, {}, 0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"id": None}, "id is None"),
        ({"metrics": 3}, "metrics is 3"),
        ({"metrics": {"val/loss": "low"}}, "metrics.val/loss is 'low'"),
        ({"resumed": [{"at": 3}]}, r"resumed\[0\]\.at is 3"),
        ({"ledgers": {"est": {"method": "EST", "baseline": None}}}, "baseline is None"),
        ({"git": "feed"}, "git is 'feed'"),
        ({"sweep": {"id": 4}}, "id is 4"),
        ({"seed": "1"}, "seed is '1'"),
    ],
)
def test_what_is_no_record_is_refused(
    tmp_path: Path, change: dict[str, object], words: str
) -> None:
    (tmp_path / "run.json").write_text(json.dumps({**OLD, **change}))
    with pytest.raises(NoRun, match=rf"run\.json: no record of a run, {words}"):
        read_record(tmp_path)


def test_what_a_task_has_measured_is_read_or_refused(tmp_path: Path) -> None:
    file = tmp_path / "lm_eval.json"
    file.write_text('{"metrics": {"acc": 0.5, "ppl": null}}')
    assert read_measured(file) == ({"acc": 0.5, "ppl": None}, "null")
    for content in ("{}", "7", '{"metrics": {"acc": "high"}}', "[" * 100_000):
        file.write_text(content)
        with pytest.raises(NoRun, match=r"lm_eval\.json: damaged"):
            read_measured(file)


def test_a_run_says_who_asked_for_it_and_what_it_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the whole command; the experiment stands there under another name and in debug mode."""
    secrets = {"WANDB_API_KEY": "0123456789abcdef", "HF_TOKEN": "a-token-of-the-hub"}
    for name, value in {**secrets, "FRUGAL_OUTPUTS": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    given = ["experiment=tiny", "debug=fast", "seed=7", "name=other", "tags=[0123456789abcdef]"]
    assert command(*given, "module.lr=0.02") == 0
    (folder,) = (tmp_path / "other").iterdir()
    record = read_record(folder)
    assert (record.name, record.experiment) == ("other", "tiny")
    assert record.command is not None
    assert record.command.startswith("python run.py ")
    assert record.command.endswith(" module.lr=0.02")
    assert record.overrides[-2:] == ["tags=[***]", "module.lr=0.02"]
    assert record.sweep is None
    assert record.hardware.cores == len(os.sched_getaffinity(0))
    assert record.hardware.cpu
    assert record.hardware.threads >= 1
    assert record.peak_memory.cpu is not None
    assert 50e6 < record.peak_memory.cpu < 50e9
    assert record.phases.keys() == {"preparation", "training"}  # validated at the last step
    assert record.phases["training"] == record.metrics["seconds"]
    assert record.seconds is not None
    assert record.phases["training"] < record.seconds
    files = [path for path in folder.rglob("*") if path.is_file()]
    for path in files:
        name = path.relative_to(folder).as_posix()
        assert any(fnmatch(name, pattern) for pattern in FILES), f"{name} stands in no table"
        if path.suffix in (".json", ".yaml", ".csv"):
            assert not any(secret in path.read_text() for secret in secrets.values())
    bare = ["~module", "~datamodule", "callbacks=default", f"ckpt_path={folder}"]
    run(tmp_path, "task=validate", *bare)
    (again,) = set(folder.parent.iterdir()) - {folder}
    record = read_record(again)
    assert (record.experiment, record.command, record.overrides) == ("tiny", None, [])
    assert record.phases.keys() == {"preparation", "validation"}


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("+logger.wandb.api_key=abc", "+logger.wandb.api_key=***"),
        ("+datamodule.token=abc seed=1", "+datamodule.token=*** seed=1"),
        ("+a={hub_token: abc, b: 1}", "+a={hub_token: ***, b: 1}"),
        ("hf_0123456789abcdefXYZ", "***"),
        ("https://me:pass@host/x", "https://***@host/x"),
        ("401 for https://host/x", "401 for https://host/x"),
        ("module.max_new_tokens=3", "module.max_new_tokens=3"),
        ("datamodule.tokenizer=x", "datamodule.tokenizer=x"),
        ("module.pad_token=x", "module.pad_token=x"),
    ],
)
def test_secrets_are_masked_and_settings_are_not(text: str, masked: str) -> None:
    assert without_secrets({"a": [text]}) == {"a": [masked]}
    name, _, value = text.partition("=")
    if "***" in masked and "{" not in text and " " not in value and value:
        key = name.rpartition(".")[2]
        assert without_secrets({key: value}) == {key: "***"}


def test_a_job_says_its_number_its_overrides_and_its_seed() -> None:
    job = SweepJob("a", 2, 6)
    assert Origin(None, ("a=1",), None, job).words(4) == "job 2/6: a=1 seed=4"
    assert Origin(None, ("seed=4", "a=1"), None, job).words(4) == "job 2/6: seed=4 a=1"
    assert Origin(None, (), None, SweepJob("a", 2)).words(4) == "job 2: seed=4"
    assert Origin(None, (), None, SweepJob("of W&B")).words(4) is None
    assert Origin().words(4) is None
