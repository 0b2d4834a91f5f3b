"""What is wrong with the user's own data is said before anything is trained or written."""

import json
from pathlib import Path

import pytest

import runner
from runner import validate
from runner.errors import ConfigError


def run(folder: Path, *overrides: str) -> None:
    """Run a config as run.py does, in this process."""
    places = [f"paths.output_dir={folder / 'outputs'}", f"paths.cache_dir={folder / 'cache'}"]
    runner.do(validate.asked([*overrides, *places]))


SMALL = (
    *("experiment=est_gpt2", "datamodule=text", "trainer=cpu", "datamodule.vocab_size=300"),
    *("datamodule.context_length=32", "datamodule.batch_size=4"),
)


def test_too_little_text_leaves_no_run_folder(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("short")
    with pytest.raises(ConfigError, match=r"the train part has 7 bytes, too few for 4 blocks"):
        run(tmp_path, *SMALL, f"datamodule.files={tmp_path}/short.txt")
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("further", [[], ["dry_run=true"]], ids=["run", "dry run"])
def test_own_rows_are_read_before_a_base_is_trained_for_them(
    tmp_path: Path, further: list[str]
) -> None:
    rows = [{"question": f"{i}?", "answer": None if i == 70 else "x"} for i in range(90)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = ["datamodule.source=jsonl", f"datamodule.files={tmp_path}/rows.jsonl"]
    with pytest.raises(ConfigError, match=r"rows.jsonl:71: 'answer' has no text \(it is None\)"):
        run(tmp_path, "experiment=sat_sft", *own, *further)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]
