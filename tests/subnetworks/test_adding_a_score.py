"""A new importance is one function and one row of `SCORES`: a copy of the repository runs it."""

import json
import pydoc_data.topics
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FUNCTION = '''
def sparse(weight: Tensor, axis: int) -> Tensor:
    """How many weights of each row are above 0."""
    return (weight > 0).sum(1 - axis).to(weight.dtype)


SCORES: dict[str, Score] = {
    "sparse": Score(sparse, "weights"),'''


@pytest.mark.slow
def test_a_score_is_added_in_one_file(root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    left_out = shutil.ignore_patterns(".*", "__pycache__", "outputs", "tests", "docs", "wandb")
    shutil.copytree(root, copy, ignore=left_out)
    file = copy / "subnetworks" / "importance.py"
    table = "\nSCORES: dict[str, Score] = {"
    assert file.read_text().count(table) == 1
    file.write_text(file.read_text().replace(table, FUNCTION))
    text = tmp_path / "topics.txt"
    text.write_text("\n".join(pydoc_data.topics.topics.values())[:50_000])
    overrides = [
        "module=llama",
        "module.architecture.hidden_size=32",
        "module.architecture.num_hidden_layers=2",
        "datamodule=text",
        f"datamodule.files={text}",
        "datamodule.vocab_size=300",
        "datamodule.context_length=16",
        "datamodule.batch_size=4",
        "callbacks=sat",
        "callbacks.sat.importance=sparse",
        "debug=fast",
        f"paths.output_dir={tmp_path / 'outputs'}",
        f"paths.cache_dir={tmp_path / 'cache'}",
    ]
    command = [sys.executable, "run.py", *overrides]
    ended = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (record,) = (tmp_path / "outputs").glob("*/*/run.json")
    savings = json.loads(record.read_text())["ledgers"]["sat"]["savings"]
    assert all(row["spent"] < row["baseline"] for row in savings if row["unit"] == "FLOPs")
