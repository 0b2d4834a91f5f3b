"""Generated configs: wrong types, impossible values and pairs of them end in words or in a run."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from runner import validate
from runner.errors import ConfigError
from runner.explain import composed

SECONDS = 60  # more than any of these runs takes

NUMBERS = (0, 1, -1, 2, 3, 7, 0.5, -0.5, 1.5, 1e-9, 1e20, 99999999999, 2**70)
OTHERS: tuple[Any, ...] = (
    "x",
    "",
    True,
    None,
    [],
    [0.9],
    [1.5, 2],
    {},
    {"a": 1},
    "1e-3",
    "nan",
    float("nan"),
)


def leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every key that holds a value, and what it holds."""
    for name, value in node.items():
        full = f"{key}.{name}" if key else str(name)
        if isinstance(value, dict) and value:
            yield from leaves(value, full)
        elif name != "_target_":
            yield full, value


def changed(base: DictConfig, number: int) -> tuple[DictConfig, dict[str, Any]]:
    """Return a config with one to three values changed, and the changes; the same for a number."""
    draw = random.Random(number)
    plain = OmegaConf.to_container(base, resolve=False)
    assert isinstance(plain, dict)
    keys = [k for k, _ in leaves(plain) if k.split(".")[0] not in ("paths", "logger", "name")]
    keys = [k for k in keys if k not in ("task", "resume", "ckpt_path", "dry_run")]
    cfg = base.copy()
    changes = {}
    for key in draw.sample(keys, draw.choice((1, 1, 2, 3))):
        value = OmegaConf.select(base, key, default=None, throw_on_missing=False)
        same_kind = isinstance(value, int | float) and not isinstance(value, bool)
        changes[key] = draw.choice(
            NUMBERS if same_kind and draw.random() < 0.7 else OTHERS + NUMBERS
        )
        with open_dict(cfg):
            OmegaConf.update(cfg, key, changes[key], merge=False)
    return cfg, changes


def without_hydra(overrides: list[str]) -> DictConfig:
    cfg = composed(overrides)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


@pytest.mark.parametrize("experiment", ["est_gpt2", "sat_cpt", "sat_sft", "dlch", "delta"])
def test_a_generated_config_is_checked_in_words(experiment: str) -> None:
    base = without_hydra([f"experiment={experiment}"])
    refused = 0
    for number in range(16):
        cfg, changes = changed(base, number)
        try:
            validate.check(cfg)
        except ConfigError:
            refused += 1
        except Exception as error:
            raise AssertionError(f"{number}: {changes}") from error
    assert refused > 7


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_generated_config_is_refused_or_runs(tmp_path: Path) -> None:
    """Of 300: what is accepted trains two steps; nothing ends in a traceback, nothing hangs."""
    import pydoc_data.topics

    import runner

    text = tmp_path / "text.txt"
    text.write_text("\n".join(pydoc_data.topics.topics.values())[:40_000])
    small = (
        f"experiment=est_gpt2 debug=fast datamodule=text datamodule.files={text} trainer=cpu "
        "datamodule.vocab_size=300 datamodule.context_length=32 datamodule.batch_size=4 "
        "module.architecture.n_embd=32 trainer.max_steps=2 trainer.val_check_interval=2 "
        f"paths.output_dir={tmp_path / 'outputs'} paths.cache_dir={tmp_path / 'cache'}"
    )
    base = without_hydra(small.split())
    for number in range(300):
        cfg, changes = changed(base, number)
        cfg.trainer.max_steps = (
            min(2, cfg.trainer.max_steps) if type(cfg.trainer.max_steps) is int else 2
        )
        signal.signal(signal.SIGALRM, _too_long)
        signal.alarm(SECONDS)
        try:
            runner.run(cfg)
        except (ConfigError, OmegaConfBaseException):
            continue
        except Exception as error:
            raise AssertionError(f"{number}: {changes}") from error
        finally:
            signal.alarm(0)


def _too_long(*_: Any) -> None:
    raise TimeoutError(f"more than {SECONDS} s")
