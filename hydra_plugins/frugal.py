"""Where Hydra looks for launchers and sweepers: those of this laboratory.

Every start imports this file: what is heavy is imported where it is used.
"""

from __future__ import annotations

import os
import signal
import subprocess
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Interval
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from datamodules.settings import Whole
from runner import engines, machine
from runner.engines import Command, Running
from runner.errors import ConfigError, first_line


class EngineLauncher(Launcher):
    """Starts every job of a sweep as a command of its own: an `Engine` of `runner.engines`."""

    config: DictConfig
    workers: int | None

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep the sweep's config; the task is what the command does."""
        self.config = config
        self.open()

    @abstractmethod
    def open(self) -> None:
        """Make ready what will run the jobs."""

    @abstractmethod
    def start(self, command: Command) -> Running:
        """Start a job."""

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run jobs and wait for them."""
        from runner.jobs import launch

        return launch(self, self.config, job_overrides, initial_job_idx)


class _Process:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._requests = iter(engines.REQUESTS)

    def code(self) -> int | None:
        return self._process.poll()

    def stop(self) -> None:
        self._process.send_signal(next(self._requests, signal.SIGKILL))


class Pool(EngineLauncher):
    """hydra/launcher=pool: processes of this machine.

    Args:
        workers: How many run at once; they share its cores and GPUs out.
    """

    workers: int

    def __init__(self, workers: Whole) -> None:
        self.workers = workers

    def open(self) -> None:
        """Share the machine out."""
        self._shares = machine.shares(self.workers)
        self._held: dict[int, Running] = {}

    def start(self, command: Command) -> Running:
        """Start a job with the first share that is free."""
        free = (n for n, held in self._held.items() if held.code() is not None)
        place = next(free, len(self._held))
        self._held[place] = _Process(command.begin(self._shares[place]))
        return self._held[place]


class _Task:
    def __init__(self, ray: Any, reference: Any) -> None:
        self._ray = ray
        self._reference = reference
        self._asked = False

    def code(self) -> int | None:
        ready, _ = self._ray.wait([self._reference], timeout=0)
        if not ready:
            return None
        try:
            return int(self._ray.get(self._reference))
        except self._ray.exceptions.RayError:  # its worker, or the whole node, is gone
            return -signal.SIGTERM if self._asked else -signal.SIGKILL

    def stop(self) -> None:
        self._ray.cancel(self._reference, force=self._asked)
        self._asked = True


class Ray(EngineLauncher):
    """hydra/launcher=ray: a Ray cluster.

    A job is a task that is not tried again: what became of it stands in its run folder.

    Args:
        workers: How many run at once; None: as many as there is room for.
        address: Of the cluster, "auto": the one this machine belongs to; None: a local one, started
            for this sweep.
        cpus: CPUs of the cluster that a job takes, and threads that it uses. None: of a local
            cluster its share, of another one 1.
        gpus: GPUs that a job takes; 0.5: two share one.
    """

    needs: ClassVar[tuple[str, str]] = ("ray", "ray")

    def __init__(
        self,
        workers: Whole | None = None,
        address: str | None = None,
        cpus: Whole | None = None,
        gpus: Annotated[float, Ge(0)] = 0,
    ) -> None:
        self.workers = workers
        self.address = address
        self.cpus = cpus
        self.gpus = gpus

    def open(self) -> None:
        """Join the cluster, or start one.

        Raises:
            ConfigError: There is none at the address.
        """
        import ray

        cores, local = machine.cores(), {}
        cpus = self.cpus or (max(1, cores // (self.workers or cores)) if not self.address else 1)
        if self.address is None:
            local["num_cpus"] = cpus * (self.workers or max(1, cores // cpus))
        try:
            ray.init(
                address=self.address or "local",
                include_dashboard=False,
                log_to_driver=False,
                runtime_env={"env_vars": {"PYTHONPATH": engines.path_with_ours()}},
                **local,
            )
        except ConnectionError as error:
            words = first_line(error)
            raise ConfigError(f"hydra.launcher.address={self.address}: {words}") from error
        task = ray.remote(engines.execute)
        self._ray, options = ray, {"num_cpus": cpus, "num_gpus": self.gpus}
        self._task = task.options(**options, max_retries=0)

    def start(self, command: Command) -> Running:
        """Hand a job to the cluster."""
        return _Task(self._ray, self._task.remote(command))


class _Queued:
    def __init__(self, job: Any, lost: tuple[type[Exception], ...]) -> None:
        self._job = job
        self._lost = lost

    def code(self) -> int | None:
        if not self._job.done():
            return None
        try:
            return int(self._job.result())
        except self._lost:
            return -signal.SIGKILL

    def stop(self) -> None:
        self._job.cancel()


class Submitit(EngineLauncher):
    """hydra/launcher=submitit_slurm or submitit_local: a SLURM queue, or processes like one.

    Args:
        cluster: Which.
        workers: How many are queued or run at once; None: all.
        timeout_min: Minutes after which a job is stopped.
        cpus_per_task: CPUs of a job.
        gpus_per_node: GPUs of a job.
        mem_gb: Memory of a job in GB; None: the queue's default.
        slurm: Further options of sbatch by name (partition, account, qos, constraint, setup, ...).
    """

    needs: ClassVar[tuple[str, str]] = ("submitit", "slurm")

    def __init__(
        self,
        cluster: Literal["slurm", "local"],
        workers: Whole | None = None,
        timeout_min: Whole = 60,
        cpus_per_task: Whole = 1,
        gpus_per_node: Annotated[int, Ge(0)] = 0,
        mem_gb: Annotated[float, Gt(0)] | None = None,
        slurm: dict[str, Any] | None = None,
    ) -> None:
        self.cluster = cluster
        self.workers = workers
        given = {
            "timeout_min": timeout_min,
            "cpus_per_task": cpus_per_task,
            "gpus_per_node": gpus_per_node,
            "mem_gb": mem_gb,
            **{f"slurm_{name}": value for name, value in (slurm or {}).items()},
        }
        self.parameters = {name: value for name, value in given.items() if value is not None}

    def open(self) -> None:
        """Make submitit's executor; its files lie in the sweep's folder."""
        import submitit

        os.environ["PYTHONPATH"] = engines.path_with_ours()
        folder = Path(self.config.hydra.sweep.dir) / "submitit"
        self._lost = (submitit.core.utils.UncompletedJobError, submitit.core.utils.FailedJobError)
        self._executor = submitit.AutoExecutor(folder=folder, cluster=self.cluster)
        self._executor.update_parameters(**self.parameters)

    def start(self, command: Command) -> Running:
        """Queue a job."""
        return _Queued(self._executor.submit(engines.execute, command), self._lost)


class Search(Sweeper):
    """hydra/sweeper=search: Optuna looks for settings, in place of a grid.

    Args:
        trials: How many in all, those of earlier commands included.
        params: What is searched, in Hydra's notation, by key.
        study: The study's name; None: the run's name.
        startup: Trials drawn at random, before Optuna learns from them and before any is pruned.
        prune_after: Share of a training after which it is stopped if it is worse than the median of
            the others at that step; None: none is.
        seed: Of what is drawn.
    """

    needs: ClassVar[tuple[str, str]] = ("optuna", "search")

    def __init__(
        self,
        trials: Whole = 50,
        params: dict[str, str] | None = None,
        study: str | None = None,
        startup: Whole = 10,
        prune_after: Annotated[float, Interval(ge=0, lt=1)] | None = 0.5,
        seed: Annotated[int, Ge(0)] = 1,
    ) -> None:
        self.plan = {
            "trials": trials,
            "study": study,
            "startup": startup,
            "prune_after": prune_after,
            "seed": seed,
        }

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep the sweep's config, and make the launcher that starts the trials."""
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context, task_function, config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run trials until there are enough."""
        from runner.search import search, space_of

        assert self.config is not None
        assert isinstance(self.launcher, EngineLauncher)  # runner.sweep refuses others
        search(self.config, self.launcher, space_of(self.config), self.plan)
