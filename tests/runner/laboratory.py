"""run.py as the tests start it, here or in a process of its own: it may build classes of tests."""

import json
import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

import runner
from runner import validate
from runner.errors import ConfigError
from runner.explain import with_new_keys

ROOT = Path(__file__).resolve().parents[2]
CONF = Path(__file__).with_name("conf")


def start(outputs: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start `python run.py ARGUMENTS` and return the process, its output joined in one pipe."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.runner.laboratory", *arguments],
        cwd=ROOT,
        env={
            **os.environ,
            "FRUGAL_OUTPUTS": str(outputs),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for a process; return its exit code and output."""
    output, _ = process.communicate(timeout=240)
    return process.returncode, output


def forked(outputs: Path, *arguments: str) -> tuple[int, str]:
    """Do what `finish(start(...))` does, in a fork of this process: all is imported already."""
    with tempfile.TemporaryFile("w+") as said:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                for stream in (1, 2):
                    os.dup2(said.fileno(), stream)
                sys.stdout = sys.stderr = open(1, "w", closefd=False)  # noqa: SIM115
                os.environ["FRUGAL_OUTPUTS"] = str(outputs)
                code = command(*arguments)
            except BaseException:  # noqa: BLE001  a fork must not go on as its parent
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(code)
        _, status = os.waitpid(child, 0)
        said.seek(0)
        return os.waitstatus_to_exitcode(status), said.read()


def run(outputs: Path, *overrides: str) -> dict[str, float]:
    """Do in this process what `python run.py experiment=tiny OVERRIDES` does in its own."""
    given = [f"hydra.searchpath=[file://{CONF}]", "experiment=tiny", f"paths.output_dir={outputs}"]
    with initialize_config_dir(str(validate.CONF), version_base="1.3"):
        cfg = compose("config", with_new_keys([*given, "name=tiny", *overrides]))
    return runner.run(cfg)


def wandb_run(offline: Path) -> dict[str, Any]:
    """Return what W&B kept of a run, read by the program that `wandb leet inspect` starts."""
    from wandb.util import get_core_path  # a second, of which every process here would pay

    (file,) = offline.glob("run-*.wandb")
    tool = [get_core_path(), "leet", "inspect", "--no-observability", "--json"]
    place = ["--run-file", str(file), str(offline.parent)]
    said = [
        subprocess.run([*tool, *options, *place], capture_output=True, check=True)
        for options in ([], ["--summary"])
    ]
    records = [json.loads(line) for line in said[0].stdout.splitlines()]
    metrics = [record["metric"] for record in records if record["type"] == "metric"]
    return {
        **json.loads(said[1].stdout),
        "axes": [metric["name"] for metric in metrics if "name" in metric],
        "axis of all others": metrics[-1].get("step_metric"),
        "history": [r["history"]["item"] for r in records if r["type"] == "history"],
        "system": [record for record in records if record["type"] == "stats"],
    }


def command(*arguments: str) -> int:
    """Do in this process what `python run.py ARGUMENTS` does; return its exit code."""
    path = ROOT / "run.py"
    config, argv = HydraConfig.instance().cfg, sys.argv
    sys.argv = [str(path), "--config-dir", str(CONF), *arguments]
    GlobalHydra.instance().clear()
    try:
        exec(compile(path.read_text(), path, "exec"), {"__name__": "__main__"})
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        GlobalHydra.instance().clear()
        HydraConfig.instance().cfg, sys.argv = config, argv
    return 0


def refusal(*overrides: str) -> str:
    """Return why `python run.py OVERRIDES` is refused, composed once; Hydra composes twice."""
    try:
        validate.asked([f"hydra.searchpath=[file://{CONF}]", *overrides])
    except ConfigError as error:
        return str(error)
    raise AssertionError(f"{overrides}: accepted")


def allow_tests() -> None:
    """Let a `_target_` begin with `tests`."""
    if "tests" not in validate.ALLOWED:
        validate.ALLOWED += ("tests",)


if __name__ == "__main__":
    allow_tests()
    sys.argv[0] = __file__  # the command that Lightning gives to the processes it starts
    sys.argv[1:1] = ["--config-dir", str(CONF)]
    path = ROOT / "run.py"
    exec(compile(path.read_text(), path, "exec"))
