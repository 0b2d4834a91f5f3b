"""The plain PyTorch loop that a method card shows runs as it stands."""

import re
from pathlib import Path

import pytest

CARDS = sorted((Path(__file__).parents[1] / "docs" / "methods").glob("*.md"))


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.stem)
def test_the_loop_of_the_card_runs(card: Path) -> None:
    loops = re.findall(r"```python\n(.*?)```", card.read_text(), re.DOTALL)
    assert loops, "a card shows its method in a plain PyTorch loop"
    for loop in loops:
        names: dict[str, object] = {}
        exec(compile(loop, str(card), "exec"), names)
        assert names["step"] == 19
