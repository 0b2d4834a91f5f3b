"""Where Hydra looks for launchers and sweepers: those of this laboratory.

Every start imports this file: what does the work is imported where it is done.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Interval
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

if TYPE_CHECKING:
    from runner.engines import Engine

Whole = Annotated[int, Ge(1)]


class EngineLauncher(Launcher):
    """Starts every job of a sweep as a command of its own, through an engine."""

    config: DictConfig

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep the sweep's config; the task is what the command does."""
        self.config = config

    @abstractmethod
    def engine(self) -> Engine:
        """Return what starts the jobs."""

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run jobs and wait for them."""
        from runner.jobs import launch

        return launch(self.engine(), self.config, job_overrides, initial_job_idx)


class Pool(EngineLauncher):
    """hydra/launcher=pool: processes of this machine.

    Args:
        workers: How many run at once; they share its cores and GPUs out.
    """

    def __init__(self, workers: Whole) -> None:
        self.workers = workers

    def engine(self) -> Engine:
        """Return processes of this machine."""
        from runner import engines

        return engines.Pool(self.workers)


class Ray(EngineLauncher):
    """hydra/launcher=ray: a Ray cluster.

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

    def engine(self) -> Engine:
        """Return the cluster."""
        from runner import engines

        return engines.Ray(self.address, self.workers, self.cpus, self.gpus)


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
        self.parameters = {
            "timeout_min": timeout_min,
            "cpus_per_task": cpus_per_task,
            "gpus_per_node": gpus_per_node,
            "mem_gb": mem_gb,
            **{f"slurm_{name}": value for name, value in (slurm or {}).items()},
        }

    def engine(self) -> Engine:
        """Return the queue."""
        from runner import engines

        folder = Path(self.config.hydra.sweep.dir) / "submitit"
        parameters = {name: value for name, value in self.parameters.items() if value is not None}
        return engines.Submitit(self.cluster, folder, self.workers, parameters)


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
        search(self.config, self.launcher.engine(), space_of(self.config), self.plan)
