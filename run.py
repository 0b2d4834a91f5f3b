"""The entry point: python run.py experiment=est_gpt2 (all there is to set: conf/)."""

import sys

import hydra
from omegaconf import DictConfig

import runner
from runner.command import guard
from runner.errors import ConfigError, Refusal


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    """Run what the command line composed."""
    try:
        runner.run(cfg)
    except ConfigError as error:
        raise Refusal(error) from error


if __name__ == "__main__":
    sys.exit(guard(main))
