"""Two runs take turns, and what the second process brings is their ratio."""

import random
from pathlib import Path

import pytest

from benchmarks import processes


@pytest.mark.slow
def test_rates_are_those_of_runs(tmp_path: Path) -> None:
    draw = random.Random(0)
    words = ["".join(draw.choices("aeilmnrst", k=5)) for _ in range(300)]
    text = tmp_path / "text.txt"
    text.write_text("\n".join(" ".join(draw.choices(words, k=8)) + "." for _ in range(2000)))
    settings = ["datamodule=text", f"datamodule.files={text}", f"paths.cache_dir={tmp_path}"]
    settings += ["datamodule.vocab_size=300", "datamodule.context_length=16"]
    sizes = ["--width", "32", "--batch-size", "4", "--steps", "8", "--rounds", "1"]
    result = processes.main([*sizes, *(f"--set={each}" for each in settings)])
    rates = result["tokens_per_second"]
    assert result["ratio"] == rates[2] / rates[1]
    assert min(rates.values()) > 0
