"""The entry point: python run.py experiment=est_gpt2 (all there is to set: conf/)."""

import sys

import hydra
from omegaconf import DictConfig, OmegaConf

import runner
from runner.command import guard
from runner.errors import ConfigError, Refusal


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> float | None:
    """Run what the command line composed; return what it reached in the metric that is watched."""
    try:
        metrics = runner.run(cfg)
    except ConfigError as error:
        raise Refusal(error) from error
    return metrics.get(OmegaConf.select(cfg, "callbacks.checkpoint.monitor"))


if __name__ == "__main__":
    sys.exit(guard(main))
