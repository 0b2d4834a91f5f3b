"""The speed of a run's own parser and rewriter."""

import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

import runner
from benchmarks import delta
from runner.validate import CONF
from tests.test_experiments import tiny_parser, tiny_rewriter


@pytest.mark.slow
def test_a_run_is_timed(
    tmp_path: Path, cache_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ("dialogues=90", "test_dialogues=9", "batch_size=8")
    overrides = [
        "experiment=delta",
        "debug=fast",
        *tiny_parser("module.parser"),
        *tiny_rewriter("module.rewriter"),
        *(f"datamodule.{size}" for size in sizes),
        f"paths.output_dir={tmp_path}",
        f"paths.cache_dir={cache_dir}",
    ]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        runner.run(compose("config", overrides))
    (run,) = (tmp_path / "debug").iterdir()
    path = tmp_path / "delta.json"
    delta.main([str(run), "--quick", "--turns", "4", "--batches", "1", "4", "--json", str(path)])
    found = json.loads(path.read_text())
    assert found["timed_turns"] == 4
    for rates in found["turns_per_second"].values():
        assert all(rates[batch] > 0 for batch in ("1", "4"))
    assert all(0 < share < 1 for share in found["grammar_share"].values())
    assert "turns per second" in capsys.readouterr().out
