"""A method is new files and one row of tests/settings.py: a copy of the repository has it then."""

import os
import pydoc_data.topics
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CALLBACK = '''
"""A share of each layer's neurons, the same ones at every step."""

from typing import Annotated, Any, ClassVar

from annotated_types import Interval

from callbacks.subnetwork import SubnetworkTraining
from subnetworks.anatomy import dimensions_of
from subnetworks.schedule import Schedule
from subnetworks.spec import SubnetworkSpec, planned_subnetwork


class FirstNeurons(SubnetworkTraining):
    method: ClassVar[str] = "first"

    def __init__(self, share: Annotated[float, Interval(gt=0, le=1)] = 0.5) -> None:
        schedule = Schedule([{"until": 1.0, "neurons": share}])
        super().__init__({"share": share}, schedule, freeze_unsampled=False, seed=0)

    def draw(self, config: Any, step: int, max_steps: int) -> SubnetworkSpec:
        return planned_subnetwork(dimensions_of(config), self.schedule.rates_at(step, max_steps))

    def refuse(self, pl_module: Any) -> None:
        super().refuse(pl_module)
        if self.settings["share"] * dimensions_of(pl_module.hf_config).intermediate_size < 1:
            raise ValueError("share: leaves less than one neuron")
'''
CONFIG = """
defaults: [default, _self_]

first:
  _target_: callbacks.first_neurons.FirstNeurons
  share: 0.5
"""
ROW = """
from callbacks.first_neurons import FirstNeurons
SETTINGS["first neurons"] = Setting(_LLAMA, FirstNeurons)
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_method_is_new_files_and_a_row(root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    left_out = shutil.ignore_patterns(".*", "__pycache__", "outputs", "docs", "wandb")
    shutil.copytree(root, copy, ignore=left_out)
    (copy / "callbacks" / "first_neurons.py").write_text(CALLBACK.lstrip())
    (copy / "conf" / "callbacks" / "first.yaml").write_text(CONFIG)
    settings = copy / "tests" / "settings.py"
    settings.write_text(settings.read_text() + ROW)

    def do(*command: str) -> str:
        """Do something in the copy."""
        ended = subprocess.run(
            [sys.executable, *command], cwd=copy, capture_output=True, text=True, timeout=600
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    proofs = do("-m", "pytest", "-q", "tests/test_methods.py", "-k", "first")
    passed = re.search(r"(\d+) passed", proofs)
    assert passed is not None
    assert int(passed[1]) >= 8
    text = tmp_path / "topics.txt"
    text.write_text("\n".join(pydoc_data.topics.topics.values())[:50_000])
    sizes = ["module=gpt2", "module.architecture.n_embd=32", "datamodule.batch_size=4"]
    sizes += ["datamodule.vocab_size=300", "datamodule.context_length=16"]
    places = [f"paths.output_dir={tmp_path / 'outputs'}", f"paths.cache_dir={tmp_path / 'cache'}"]
    data = ["datamodule=text", f"datamodule.files={text}", *sizes, *places]
    shown = do("run.py", "callbacks=first", "debug=fast", "logger=csv", *data)
    assert "FIRST" in shown
    command = [sys.executable, "run.py", "callbacks=first", "callbacks.first.share=0", *data]
    refused = subprocess.run(command, cwd=copy, capture_output=True, text=True, env={**os.environ})
    assert refused.returncode == 2
    assert "callbacks.first.share=0 must be float in (0, 1]" in refused.stderr
