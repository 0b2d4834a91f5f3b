"""What becomes of a config: refused in words, or started and found to work."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runner import validate
from runner.command import guard
from runner.errors import ConfigError
from tests.forked import REFUSED, Ended, forked
from tests.fuzz.configs import Changes, numbers, with_changes

CHECK_SECONDS = 5.0  # of this process's time; a check takes a hundredth of it
RUN_SECONDS = 60  # of a processor; these runs take two, and thirty where they are compiled
WALL_SECONDS = 240.0  # on a machine that does other things as well
WORDS = 6000  # characters that somebody may have to read, a list of all experiments
MAX_STEPS = 3  # a step for each session of lifelong hashing
LARGE = 48  # what is drawn beyond it may make a run as slow as it says

# What leads out of the folder of a test, or starts processes.
OUTSIDE = {"folder", "dir", "dirpath", "save_dir", "default_root_dir", "cache_dir", "output_dir"}
PROCESSES = {"num_nodes", "devices", "strategy", "accelerator", "num_workers", "start_method"}
# What reads everything that is installed: minutes.
ALL_OF_PYTHON = {"source", "old_domain"}
OTHER_TASKS = {"task", "resume", "ckpt_path"}
FAULTS = ("traceback", "hung", "no words", "no step")

TRAINED = "optimizer steps:"  # what a child says last that has come to its end


@dataclass(frozen=True)
class Verdict:
    """How a config that differs in a few values ended.

    Args:
        end: `refused`, `ran` (where there was a run to go on with: `went on`, `begun anew`),
            `failed in words`, `slow` (it asks for much), or one of FAULTS.
        said: What was said.
        seconds: How long it took.
    """

    end: str
    said: str
    seconds: float

    @property
    def fault(self) -> str:
        """What was said, if it should not have ended so; else nothing."""
        return (self.said.strip() or self.end) if self.end in FAULTS else ""


def harmless(keys: Mapping[str, tuple[object, ...]]) -> dict[str, tuple[object, ...]]:
    """Return the keys that a run in a test's folder may get any value of.

    A model that an experiment would train first, for minutes, is the small one of the folder.
    """
    kept: dict[str, tuple[object, ...]] = {}
    for key, values in keys.items():
        names = set(re.split(r"[.\[\]]+", key))
        unsafe = OUTSIDE | PROCESSES | OTHER_TASKS | ALL_OF_PYTHON | {"logger", "paths"}
        if not names & unsafe:
            kept[key] = tuple("base" if "experiment:" in str(each) else each for each in values)
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


def run(base: DictConfig, given: Changes, folder: Path, unfinished: Path | None = None) -> Verdict:
    """Check a small config with changes here, and start it in a child; nothing of it stays.

    Args:
        base: Of `tests.fuzz.small.small`.
        given: The changes.
        folder: Where the data lies, and relative paths lead from.
        unfinished: A folder of outputs with a run that it may go on with.
    """
    began = time.monotonic()
    try:
        config = with_changes(base, given)
        with contextlib.chdir(folder):
            validate.check(config)
    except OmegaConfBaseException as error:
        return Verdict("refused", str(error), time.monotonic() - began)
    except ConfigError as error:
        end = "refused" if names_one_of(str(error), given) else "no words"
        return Verdict(end, str(error), time.monotonic() - began)
    steps = OmegaConf.select(config, "trainer.max_steps", default=None)
    if type(steps) is int and steps > 0:
        config.trainer.max_steps = min(MAX_STEPS, steps)
    outputs = Path(tempfile.mkdtemp(prefix="run-", dir=folder))
    if unfinished is not None:
        shutil.copytree(unfinished, outputs, dirs_exist_ok=True)
    config.paths.output_dir = str(outputs)
    try:
        ended = start(config, folder)
    finally:
        shutil.rmtree(outputs)
    end = _end(ended, given)
    if end == "ran" and unfinished is not None:
        end = "went on" if "Going on with" in ended.said else "begun anew"
    return Verdict(end, ended.said, ended.seconds)


def start(config: DictConfig, folder: Path, stop_after: int | None = None) -> Ended:
    """Do what `python run.py` would with a composed config, in a child.

    Args:
        config: What to do.
        folder: Where to do it.
        stop_after: After so many optimizer steps a signal comes.

    Returns:
        Its code is 0 if it came to its end, 1 if it failed in words, 2 if it was refused.
    """

    def work() -> int:
        import run

        _limit_time()
        warnings.simplefilter("default")  # as a user has it; in a test a warning is an error
        os.chdir(folder)
        sys.argv = ["run.py"]
        taken = _counted_steps(stop_after)
        code = guard(lambda: run.main(config))
        print(TRAINED, taken[0])
        return code

    return forked(work, WALL_SECONDS)


def interrupted(name: str, base: DictConfig, folder: Path) -> tuple[Path, DictConfig]:
    """Start a small run and stop it after a step.

    Returns:
        Its folder of outputs, and the config with which it is gone on with.
    """
    again = with_changes(base, {"resume": "auto", "trainer.max_steps": MAX_STEPS})
    outputs = folder / f"begun-{name}"
    ended = start(with_changes(again, {"paths.output_dir": str(outputs)}), folder, stop_after=1)
    assert any(outputs.rglob("step-*.ckpt")), ended.said
    return outputs, again


def _limit_time() -> None:
    """Let this process say where it stands, and end, once it has used up its time."""
    faulthandler.register(signal.SIGXCPU, all_threads=False, chain=True)
    resource.setrlimit(resource.RLIMIT_CPU, (RUN_SECONDS, RUN_SECONDS + 5))


def _counted_steps(stop_after: int | None) -> list[int]:
    """Count optimizer steps from here on; the list's only number is the count."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    taken = [0]

    def hook(*_: object) -> None:
        taken[0] += 1
        if taken[0] == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)

    register_optimizer_step_post_hook(hook)
    return taken


def _end(ended: Ended, given: Changes) -> str:
    if ended.code is None or ended.code in (-signal.SIGXCPU, -signal.SIGKILL):
        asks_for_much = any(abs(number) > LARGE for number in numbers(given))
        return "slow" if asks_for_much else "hung"
    if not ended.in_words or ended.code not in (0, 1, REFUSED):
        return "traceback"
    if ended.code == REFUSED:
        return "refused" if names_one_of(ended.said, given) else "no words"
    if ended.code == 0 and f"{TRAINED} 0\n" in ended.said and not given.get("dry_run"):
        return "no step"
    return "failed in words" if ended.code == 1 else "ran"
