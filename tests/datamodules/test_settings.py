"""What an annotation does not allow is refused, by its place and with what is allowed."""

from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge, Gt
from typing_extensions import TypedDict

from datamodules.settings import OpenShare, Whole, arguments, validate


class Group(TypedDict, total=False):
    weight: Annotated[float, Gt(0)] | None
    least: Annotated[int, Ge(16)]


class Owner:
    def __init__(
        self,
        count: Whole | OpenShare = 1,
        groups: dict[str, Group | None] | None = None,
        kind: Literal["a", "b"] = "a",
        names: list[str] | str | None = None,
    ) -> None:
        self.settings = arguments(Owner, locals())


def test_what_is_allowed_comes_back_as_it_was() -> None:
    given: dict[str, Any] = {"count": 0.5, "groups": {"x": {"weight": 1}, "y": None}, "kind": "b"}
    assert Owner(**given).settings == {**given, "names": None}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"count": 0}, "count=0: must be greater than or equal to 1, or must be greater than 0"),
        ({"count": 1.5}, "count=1.5: must be a valid integer, or must be less than 1"),
        ({"count": True}, "count=True: must be a valid integer"),
        ({"count": float("nan")}, "count=nan: must be"),
        ({"kind": "c"}, "kind='c': must be 'a' or 'b'"),
        ({"names": 3}, "names=3: must be a valid list, or must be a valid string"),
        ({"names": ["a", 3]}, r"names\.1=3: must be a valid string"),
        (
            {"groups": {"x": {"weight": 0, "least": 0}}},
            r"groups\.x\.weight=0: must be greater .* 0$",
        ),
        ({"groups": {"x": {"wait": 0}}}, r"groups\.x\.wait: no such key"),
    ],
)
def test_what_is_not_allowed_is_named(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"^datamodule.{words}"):
        Owner(**given)


def test_tables_become_tuples_and_lack_nothing() -> None:
    assert validate({"a": tuple[int, ...]}, {"a": [1, 2]}, "t") == {"a": (1, 2)}
    with pytest.raises(ValueError, match=r"^t\.a: must be given"):
        validate({"a": int}, {}, "t")
