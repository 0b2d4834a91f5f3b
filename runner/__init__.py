"""The life of one run: compose, validate, build once, fit or test, record.

Importing this package is cheap: a wrong setting is refused before Lightning is imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig


def run(cfg: DictConfig) -> dict[str, float]:
    """Validate a composed config and do what its `task` says.

    Args:
        cfg: The composed config; its interpolations need not be resolved.

    Returns:
        The run's last metrics.

    Raises:
        ConfigError: The config cannot run; says what is wrong, what is allowed, how to mend it.
        Interrupted: A signal stopped the run.
    """
    from runner.resume import choose
    from runner.validate import check

    settings = check(cfg)
    leaves_folder = settings["task"] in ("train", "validate", "test") and not settings["dry_run"]
    start = choose(settings) if leaves_folder else None
    from runner.life import live

    return live(settings, start)
