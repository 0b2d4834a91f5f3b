"""What a dry run says of memory and of what devices send each other, against sums by hand."""

import pytest
from rich.console import Console

from runner.dry_run import Spread, memory

GPT2 = 124_439_808


def shown(*arguments: object) -> str:
    console = Console(width=120)
    with console.capture() as said:
        console.print(memory(*arguments))
    return said.get()


def test_one_device_keeps_all_and_sends_nothing() -> None:
    said = shown(GPT2, GPT2, "32-true", Spread())
    assert "474.7 MiB" in said
    assert "1.9 GiB" in said
    assert "sent" not in said


def test_eight_devices_that_keep_all_send_the_gradients_twice() -> None:
    """Nearly: 7/8 of 474.7 MiB, once to add up and once to tell."""
    said = shown(GPT2, GPT2, "bf16-mixed", Spread(8, False, micro_batches=4))
    assert "1.9 GiB" in said
    assert "8 devices in an optimizer step (DDP)" in said
    assert "830.7 MiB" in said


def test_eight_devices_that_split_keep_an_eighth_and_gather_for_every_micro_batch() -> None:
    said = shown(GPT2, GPT2, "bf16-mixed", Spread(8, True, micro_batches=2))
    assert "59.3 MiB" in said
    assert "237.4 MiB" in said
    assert "2.4 GiB" in said  # 2 micro-batches x 3 x 7/8 x 474.7 MiB


@pytest.mark.parametrize("split", [False, True])
def test_nothing_is_sent_alone(split: bool) -> None:
    assert Spread(1, split).sent(100.0, 100.0) == 0
    assert Spread(1, split).kept(100.0) == 100
