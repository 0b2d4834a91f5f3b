"""The command line: what Hydra is given of it, and how its refusals are said."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runner import engines, job, output, task_keys
from runner.errors import ConfigError, FailedRun, Refusal, machine_behind
from runner.explain import ROOT, explain, with_new_keys

# HYDRA_FULL_ERROR as the user has set it, for the processes that this one starts.
FULL = "FRUGAL_FULL_ERROR"


def guard(main: Callable[[], Any]) -> int:
    """Call a Hydra main function; print what it refuses, without a traceback.

    Args:
        main: The function that `hydra.main` made.

    Returns:
        The exit code: 0, 1 for a run whose failure was said, or 2 for a config that was refused.
        Other errors pass through.
    """
    output.outlive()
    engines.end_with_starter()
    OmegaConf.register_new_resolver("frugal.tasks", task_keys.listed, replace=True)
    OmegaConf.register_new_resolver("frugal.sweep", job.sweep_id, replace=True)
    before = os.environ.setdefault(FULL, os.environ.get("HYDRA_FULL_ERROR", ""))
    full = before == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then hands errors on, instead of exiting with 1
    try:
        _no_option_is_unknown(sys.argv[1:])
        sys.argv[1:] = with_new_keys(_options_first(sys.argv[1:]))
        _search_has_an_experiment(sys.argv[1:])
        main()
    except (Refusal, ConfigError, HydraException, OmegaConfBaseException) as error:
        refused = error.error if isinstance(error, Refusal) else error
        if full:
            raise refused from refused.__cause__
        refuse(refused)
        return 2
    except FailedRun:
        if full:
            raise
        return 1
    except Exception as error:
        trace = error.__traceback__
        while trace and Path(trace.tb_frame.f_code.co_filename) != ROOT / "run.py":
            trace = trace.tb_next
        if full:
            raise
        if trace is None and isinstance(error, ValueError):  # Hydra's, about the command line
            refuse(error)
            return 2
        if words := machine_behind(error):
            print(f"Failed: {words}", file=sys.stderr)
            return 1
        # Hydra's twenty frames above ours say nothing about what went wrong.
        error.__traceback__ = trace or error.__traceback__
        raise
    finally:
        os.environ["HYDRA_FULL_ERROR"] = os.environ.pop(FULL, before)
        if jobs := sys.modules.get("runner.jobs"):  # Hydra has come as far as starting jobs
            jobs.finish()
    return 0


def _no_option_is_unknown(arguments: list[str]) -> None:
    """Refuse settings with dashes, which Hydra would take for its option that begins alike."""
    known = get_args_parser()._option_string_actions
    for place, argument in enumerate(arguments):
        name, _, value = argument.removeprefix("--").partition("=")
        if argument.startswith("--") and f"--{name}" not in known:
            following = next(iter(arguments[place + 1 :]), "")
            value = value or ("..." if "=" in following or not following else following)
            raise ConfigError(
                f"{argument}: no such option; --help lists them. A setting is written without "
                f"dashes: {name}={value}"
            )


def _search_has_an_experiment(arguments: list[str]) -> None:
    """Refuse a search whose space has no name, at which composing the config would stumble."""
    chosen = any(re.fullmatch(r"experiment=[\w/-]+", argument) for argument in arguments)
    if "hydra/sweeper=search" in arguments and not chosen:
        raise ConfigError("hydra/sweeper=search: choose what to search: experiment=NAME, one")


def _options_first(arguments: list[str]) -> list[str]:
    """Put options before settings: argparse takes no setting after an option that follows one."""
    known = get_args_parser()._option_string_actions
    options: list[str] = []
    settings: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        action = known.get(argument.partition("=")[0])
        (settings if action is None else options).append(argument)
        if action is not None and action.nargs is None and "=" not in argument:
            options += [value for value in (next(rest, None),) if value is not None]
    return [*options, *settings]


def refuse(error: Exception) -> None:
    """Print why a config was refused."""
    words = str(error) if isinstance(error, ConfigError) else explain(error, sys.argv[1:])
    print(f"Refused, nothing was started.\n{words}", file=sys.stderr)
