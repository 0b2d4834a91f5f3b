"""What becomes of a config: refused in words, or started and found to work."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runner import validate
from runner.errors import ConfigError
from tests.forked import REFUSED, Ended, forked
from tests.fuzz.configs import Changes, base, with_changes
from tests.golden.runs import RUNS

CHECK_SECONDS = 5.0  # of this process's time; a check takes a hundredth of it
RUN_SECONDS = 120.0  # more than any of these runs takes
WORDS = 6000  # characters that somebody may have to read, a list of all experiments
MAX_STEPS = 4  # a step for each session of lifelong hashing

# What leads out of the folder of a test, or starts processes.
OUTSIDE = {"folder", "dir", "dirpath", "save_dir", "default_root_dir", "cache_dir", "output_dir"}
PROCESSES = {"num_nodes", "devices", "strategy", "accelerator", "num_workers", "start_method"}
# What reads everything that is installed: minutes.
ALL_OF_PYTHON = {"source", "old_domain"}
OTHER_TASKS = {"task", "resume", "ckpt_path"}


def harmless(keys: Mapping[str, tuple[object, ...]]) -> dict[str, tuple[object, ...]]:
    """Return the keys that a run in a test's folder may get any value of."""
    kept = {}
    for key, values in keys.items():
        names = set(re.split(r"[.\[\]]+", key))
        unsafe = OUTSIDE | PROCESSES | OTHER_TASKS | ALL_OF_PYTHON | {"logger", "paths"}
        if not names & unsafe:
            kept[key] = values
    return kept


def check(base: DictConfig, given: Changes) -> str:
    """Check a config with changes; return the words of its refusal, "" if there are none.

    Raises:
        AssertionError: It took too long, or the words do not say which key is meant.
        Exception: Any other than a refusal is a fault.
    """
    began = time.process_time()
    try:
        validate.check(with_changes(base, given))
        words = ""
    except OmegaConfBaseException as error:  # on the command line as well
        words = str(error)
    except ConfigError as error:
        words = str(error)
        assert len(words) < WORDS, f"{len(words)} characters: {words[:200]} ..."
        if not names_one_of(words, given) and words not in _words_of(base):
            raise AssertionError(f"{words[:300]}\nnames none of {list(given)}") from error
    took = time.process_time() - began
    assert took < CHECK_SECONDS, f"{took:.1f} s"
    return words


def _words_of(base: DictConfig) -> str:
    """Return why a config is refused as it is: some data are nowhere."""
    try:
        validate.check(base)
    except ConfigError as error:
        return str(error)
    return ""


def names_one_of(words: str, given: Changes) -> bool:
    """Whether a refusal names a key that was changed, or one beside it."""
    parts = {part for key in given for part in re.split(r"[.\[\]]", key)[-2:] if part}
    return any(re.search(rf"\b{re.escape(part)}\b", words) for part in parts)


def small(experiment: str, inputs: Path) -> DictConfig:
    """Compose an experiment's small run on the data in a folder."""
    config = base(f"experiment={experiment}", "debug=fast", *RUNS[experiment], "trainer=cpu")
    config.paths.cache_dir = str(inputs / "cache")
    return config


def run(config: DictConfig, given: Changes, inputs: Path, trains: bool = True) -> Ended:
    """Check a config with changes here, and start it in a child; nothing of it stays.

    Args:
        config: Of `small`.
        given: The changes.
        inputs: The folder of the data, where its relative paths lead from.
        trains: False: its parts are built, as before every run, and nothing more.

    Returns:
        Its code is 0 if it ran, 1 if it failed in words, 2 if it was refused.
    """
    began = time.process_time()
    try:
        config = with_changes(config, given)
        with contextlib.chdir(inputs):
            validate.check(config)
    except (ConfigError, OmegaConfBaseException) as error:
        return Ended(REFUSED, str(error), time.process_time() - began)
    steps = OmegaConf.select(config, "trainer.max_steps", default=None)
    if type(steps) is int:
        config.trainer.max_steps = min(MAX_STEPS, steps)
    outputs = Path(tempfile.mkdtemp(prefix="run-", dir=inputs))
    config.paths.output_dir = str(outputs)

    def work() -> int:
        import runner
        from runner.errors import FailedRun
        from runner.parts import rehearse

        os.chdir(inputs)
        try:
            if trains:
                runner.run(config)
            else:
                rehearse(validate.check(config))
        except (ConfigError, OmegaConfBaseException) as error:
            print(error)
            return REFUSED
        except FailedRun as error:
            print(error)
            return 1
        return 0

    try:
        return forked(work, RUN_SECONDS)
    finally:
        shutil.rmtree(outputs)
