"""The shipped W&B sweep file: what an agent makes of it is a command that run.py accepts."""

import re
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from runner import resume, validate
from tests.runner.laboratory import ROOT

SWEEP = ROOT / "sweeps" / "est_gpt2.yaml"


def load() -> dict[str, Any]:
    """Read the file; what is written as ${...} is the agent's, not Hydra's."""
    content = OmegaConf.to_container(OmegaConf.load(SWEEP))
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def ends(parameter: dict[str, Any]) -> list[Any]:
    return parameter["values"] if "values" in parameter else [parameter["min"], parameter["max"]]


@pytest.mark.parametrize("which", [0, -1])
def test_agents_command_is_accepted(which: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ends of every parameter's range, through the functions that the agent itself uses."""
    monkeypatch.setenv("WANDB_API_KEY", "as `wandb login` leaves one")
    sweep = load()
    drawn = {name: {"value": ends(p)[which]} for name, p in sweep["parameters"].items()}
    words = create_sweep_command_args({"args": drawn})
    command: list[str] = []
    for part in sweep["command"]:
        macro = re.fullmatch(r"\$\{(\w+)\}", part)
        command += words.get(macro[1], [macro[1]]) if macro else [part]
    assert command[:3] == ["env", "interpreter", "program"]
    assert (ROOT / sweep["program"]).exists()
    with initialize_config_dir(str(validate.CONF), version_base="1.3"):
        settings = validate.check(compose("config", command[3:])).settings
    for name, value in drawn.items():
        node = settings
        for key in name.split("."):
            node = node[key]
        assert node == value["value"]


def test_run_takes_the_agents_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent waits for the run that it has named."""
    settings = {"paths": {"output_dir": str(tmp_path)}, "name": "a", "resume": "never"}
    monkeypatch.setenv("WANDB_RUN_ID", "abcd1234")
    assert resume.choose(settings).run_id != "abcd1234"
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    assert resume.choose(settings).run_id == "abcd1234"
