"""What every child has: the data of the small runs, and the modules that a run imports."""

from __future__ import annotations

import gc
import importlib
import io
import os
from pathlib import Path

from tests.golden.runs import write_data

MODULES = (
    *("runner.life", "runner.tasks", "runner.pretrained", "matplotlib.pyplot", "datasets"),
    *("lightning_modules.causal_lm", "lightning_modules.lifelong_hashing", "callbacks.samples"),
    *("lightning_modules.text_to_sql", "lightning_modules.utterance_rewriter", "callbacks.est"),
    *("lightning_modules.sql_parser", "callbacks.sat", "callbacks.progress", "callbacks.rng_state"),
    *("datamodules.instruction", "datamodules.cross_modal", "datamodules.multi_turn_sql"),
    *("transformers.models.gpt2.modeling_gpt2", "transformers.models.llama.modeling_llama"),
    *("transformers.models.bert.modeling_bert", "scipy.io", "h5py", "pyarrow.parquet"),
    *("torch._dynamo", "torch.distributed.checkpoint", "sqlite3"),
)


def inputs(folder: Path) -> None:
    """Write the data of the small runs into a folder."""
    here = Path.cwd()
    os.chdir(folder)
    try:
        write_data()
    finally:
        os.chdir(here)


def warm_up(*commands: list[str]) -> None:
    """Do what is done once in a process, so that a forked one begins at once.

    Args:
        commands: Command lines of `run.py`, which are checked: classes' sources are read for that.
    """
    for name in MODULES:
        importlib.import_module(name)
    from matplotlib.figure import Figure

    from runner.validate import asked

    figure = Figure(layout="constrained")
    figure.subplots().set_title("fonts")
    figure.savefig(io.BytesIO())
    for command in commands:
        asked(command)
    gc.collect()
    gc.freeze()  # a child's collections leave the pages of all these modules alone
