"""What holds for every test: no network, no account, one thread, caches in a temporary folder.

The environment is set before anything else is imported, because libraries read it when they load;
the processes that a test starts inherit it.
"""

import faulthandler
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_home = tempfile.TemporaryDirectory(prefix="frugal-tests-", ignore_cleanup_errors=True)

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_HOME": f"{_home.name}/huggingface",
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
    "WANDB_DIR": _home.name,
    "TOKENIZERS_PARALLELISM": "false",
    "MPLBACKEND": "Agg",
    # One thread: sums are added up in one order, and two test processes share two cores in peace.
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


def _say_where() -> None:
    """Have a child that a signal ends say where it was, in what its test captured.

    Pytest's own handler, which a fork inherits, writes past it. Handlers that a test has put in its
    place come back only where it was disabled.
    """
    faulthandler.disable()
    faulthandler.enable(file=2)


os.register_at_fork(after_in_child=_say_where)


@pytest.fixture(scope="session")
def root() -> Path:
    """Return the repository's folder."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that all tests share: one tokenizer, one tokenised text for the session."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _environment_restored() -> Iterator[None]:
    """Undo what a test (or a library it calls: launchers, seeding) wrote into the environment."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ |= before
