"""Jobs of a sweep as processes: how many at once, what a killed one leaves, how all are stopped."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from hydra_plugins.frugal import EngineLauncher, Pool, Ray, Submitit
from runner import engines, machine
from runner.engines import STARTER, Command, Engine, execute, follow

# Leaves its beginning and its end in a file, and sleeps in between.
JOB = """
import os, sys, time
print("job", os.environ["NUMBER"], os.environ.get("OMP_NUM_THREADS"), flush=True)
with open("times", "a") as file:
    file.write(f"{time.time()} 1\\n")
time.sleep(float(sys.argv[1]))
with open("times", "a") as file:
    file.write(f"{time.time()} -1\\n")
sys.exit(int(sys.argv[2]))
"""


def job(folder: Path, number: int, seconds: float = 0.2, code: int = 0) -> Command:
    words = (sys.executable, "-S", "-c", JOB, str(seconds), str(code))
    log = folder / "logs" / f"job-{number}.log"
    return Command(number, words, {"NUMBER": str(number)}, log, folder)


def opened(launcher: EngineLauncher, folder: str = "") -> EngineLauncher:
    launcher.config = OmegaConf.create({"hydra": {"sweep": {"dir": folder}}})
    launcher.open()
    return launcher


def most_at_once(folder: Path) -> int:
    rows = sorted(
        tuple(map(float, line.split())) for line in (folder / "times").read_text().splitlines()
    )
    sums, now = [], 0.0
    for _, change in rows:
        now += change
        sums.append(now)
    return int(max(sums))


def test_as_many_run_as_there_are_workers_and_each_has_its_log(tmp_path: Path) -> None:
    jobs = [job(tmp_path, number, 0.3, int(number == 2)) for number in (1, 2, 3, 4)]
    ends = {each.number: code for each, code in follow(opened(Pool(2)), iter(jobs))}
    assert ends == {1: 0, 2: 1, 3: 0, 4: 0}
    assert most_at_once(tmp_path) == 2
    for each in jobs:
        assert each.log.read_text().startswith(f"job {each.number} ")


def test_a_killed_job_leaves_the_others(tmp_path: Path) -> None:
    """As the kernel does when memory is short."""
    killed: list[int] = []

    def kill_the_second(running: Any) -> None:
        if 2 in running and not killed:
            killed.append(running[2]._process.pid)
            os.kill(killed[0], signal.SIGKILL)

    jobs = [job(tmp_path, number, 5 if number == 2 else 0.1) for number in (1, 2, 3)]
    ends = {
        each.number: code for each, code in follow(opened(Pool(2)), iter(jobs), kill_the_second)
    }
    assert ends == {1: 0, 2: -signal.SIGKILL, 3: 0}


def test_a_signal_stops_what_runs_and_starts_nothing_more(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    ends: list[tuple[int, int]] = []
    jobs = (job(tmp_path, number, 30) for number in (1, 2, 3))

    def stop(running: Any) -> None:
        if len(running) == 2 and (tmp_path / "times").exists():
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as stopped:
        ends.extend((each.number, code) for each, code in follow(opened(Pool(2)), jobs, stop))
    assert stopped.value.code == 128 + signal.SIGTERM
    assert sorted(ends) == [(1, -signal.SIGTERM), (2, -signal.SIGTERM)]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_process_is_asked_more_and_more_firmly(tmp_path: Path) -> None:
    """A training saves at the first request, and stops at once at the second."""
    code = (
        "import signal, time\n"
        "for each in (signal.SIGTERM, signal.SIGINT):\n"
        "    signal.signal(each, lambda number, frame: print(number, flush=True))\n"
        "print('ready', flush=True)\n"
        "while True: time.sleep(1)\n"
    )
    command = Command(1, (sys.executable, "-S", "-c", code), {}, tmp_path / "log", tmp_path)
    running = opened(Pool(1)).start(command)
    for lines in (["ready"], ["ready", "15"], ["ready", "15", "2"]):
        _until(lambda lines=lines: (tmp_path / "log").read_text().split() == lines)
        running.stop()
    _until(lambda: running.code() == -signal.SIGKILL)


def test_a_job_ends_with_the_process_that_has_started_it(tmp_path: Path) -> None:
    """Killed without a word, as a worker of a cluster may be."""
    root = Path(__file__).resolve().parents[2]
    child = (
        f"import sys, time; sys.path.insert(0, {str(root)!r})\n"
        "from runner.engines import STARTER, end_with_starter\n"
        "import os\n"
        "end_with_starter()\n"
        "assert STARTER not in os.environ\n"
        "print(os.getpid(), flush=True)\n"
        "time.sleep(60)\n"
    )
    starter = (
        f"import sys; sys.path.insert(0, {str(root)!r})\n"
        "from pathlib import Path\n"
        "from runner.engines import Command, execute\n"
        f"execute(Command(1, (sys.executable, '-c', {child!r}), {{}}, Path('log')))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", starter], cwd=tmp_path)
    try:
        _until(lambda: (tmp_path / "log").exists() and (tmp_path / "log").read_text().strip())
    finally:
        process.kill()
        process.wait()
    pid = int((tmp_path / "log").read_text())
    _until(lambda: not Path(f"/proc/{pid}").exists())


def test_who_is_no_job_outlives_its_starter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(STARTER, raising=False)
    monkeypatch.setattr("threading.Thread", lambda **kwargs: pytest.fail("watches"))
    engines.end_with_starter()


def test_a_cluster_gives_back_the_exit_code(tmp_path: Path) -> None:
    assert execute(job(tmp_path, 1, 0, 3)) == 3


def test_submitit_runs_what_the_pool_runs(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    engine = opened(Submitit("local", 2, timeout_min=1), str(tmp_path))
    jobs = [job(tmp_path, number, 0.1, number - 1) for number in (1, 2)]
    _check_ends(engine, iter(jobs), {1: 0, 2: 1})


@pytest.mark.slow
def test_ray_accounts_for_all_jobs_when_a_worker_is_killed(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    fatal = (sys.executable, "-S", "-c", "import os; os.kill(os.getppid(), 9)")
    jobs = [job(tmp_path, number, 0.5, int(number == 5)) for number in range(1, 7)]
    jobs[1] = replace(jobs[1], words=fatal)
    try:
        ends = {1: 0, 2: -signal.SIGKILL, 3: 0, 4: 0, 5: 1, 6: 0}
        _check_ends(opened(Ray(2)), iter(jobs), ends)
        assert most_at_once(tmp_path) <= 2
    finally:
        ray.shutdown()


def _check_ends(engine: Engine, jobs: Iterator[Command], expected: dict[int, int]) -> None:
    assert {each.number: code for each, code in follow(engine, jobs)} == expected


def test_a_machine_is_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert machine.shares(3) == [{"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}] * 3
    assert machine.shares(9)[0]["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert machine.shares(2)[0]["OMP_NUM_THREADS"] == "1"
    for gpus, workers, expected in (
        ("0,1,2,3", 2, ["0,1", "2,3"]),
        ("4,5,6", 2, ["4", "5,6"]),
        ("0,1", 3, ["0", "1", "0"]),
    ):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
        assert [each["CUDA_VISIBLE_DEVICES"] for each in machine.shares(workers)] == expected


def _until(condition: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
