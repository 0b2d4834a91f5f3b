"""A method's check, without torch: what the runner calls before it imports anything heavy."""

from typing import Any


def check(settings: dict[str, Any], dimensions: dict[str, int] | None) -> None:
    if not 0 < settings["rate"] <= 1:
        raise ValueError(f"rate={settings['rate']} must be in (0, 1]")
