"""Arguments and tables against their types: one way to refuse what an annotation does not allow.

The runner reads a constructor's annotations from its source, before anything is imported; whoever
calls it from Python is refused here, by the same annotations. Tables in YAML have types as well.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, get_type_hints

import yaml
from annotated_types import Ge, Interval
from typing_extensions import TypedDict  # pydantic asks for this one below Python 3.12

Whole = Annotated[int, Ge(1)]
Seed = Annotated[int, Ge(0)]
Share = Annotated[float, Interval(ge=0, le=1)]
OpenShare = Annotated[float, Interval(gt=0, lt=1)]
# What is larger is a slip, for which there would be no memory or no end.
Vocabulary = Annotated[int, Interval(ge=1, le=10_000_000)]
ContextLength = Annotated[int, Interval(ge=2, le=10_000_000)]
Workers = Annotated[int, Interval(ge=0, le=1024)]


class TokenizerSettings(TypedDict, total=False):
    """What turns text into token ids: a folder or hub name, or how much text to train one on."""

    pretrained: str | None
    sample_chars: Whole


def arguments(owner: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a data module, from its constructor's `locals()`.

    Raises:
        ValueError: One is not what its annotation allows; names the config key.
    """
    hints = get_type_hints(owner.__init__, include_extras=True)  # type: ignore[misc]
    hints.pop("return", None)
    values = {name: given[name] for name in hints}
    validate(hints, values, "datamodule", strict=True)
    return values


def read_table(file: Path, table: type, placeholders: Collection[str] | None = None) -> Any:
    """Read a table in YAML.

    Args:
        file: The table.
        table: A TypedDict: what must stand in the table, and nothing else.
        placeholders: What may stand in the braces of its texts; None asks nothing.

    Raises:
        ValueError: Something is missing, or not of its type; names the file and the place in it.
    """
    content = file.read_text(encoding="utf-8")
    hints = get_type_hints(table, include_extras=True)
    found = validate(hints, yaml.safe_load(content), file.name)
    if placeholders is not None:
        scalars = (token for token in yaml.scan(content) if isinstance(token, yaml.ScalarToken))
        for text in (scalar.value for scalar in scalars):
            names = {name for _, name, _, _ in Formatter().parse(text)} - {None}
            if unknown := names.difference(placeholders):
                raise ValueError(
                    f"{file.name}: {text!r}: {{{unknown.pop()}}} stands for nothing; there are "
                    f"{', '.join(sorted(placeholders))}"
                )
    return found


def validate(
    hints: Mapping[str, Any], values: Mapping[str, Any], key: str, strict: bool = False
) -> dict[str, Any]:
    """Return values as their types have them: lists become tuples, groups dataclasses.

    Args:
        hints: The type of each value; of groups of keys TypedDicts or dataclasses.
        values: The values.
        key: What messages call the whole.
        strict: Nothing is converted: a list is no tuple and "8" no number.

    Raises:
        ValueError: Names the first place where something is wrong, and what is allowed there.
    """
    from pydantic import ConfigDict, ValidationError, create_model

    fields: dict[str, Any] = {name: (hint, ...) for name, hint in hints.items()}
    config = ConfigDict(strict=strict, extra="forbid", allow_inf_nan=False)
    try:
        return dict(create_model("Values", __config__=config, **fields).model_validate(values))
    except ValidationError as error:
        problems = error.errors(include_url=False)
    first, place = problems[0], _place(problems[0]["loc"], values)
    words = ".".join([key, *place])
    if first["type"] == "missing":
        raise ValueError(f"{words}: must be given")
    if first["type"] == "extra_forbidden":
        raise ValueError(f"{words}: no such key")
    same = (problem["msg"] for problem in problems if _place(problem["loc"], values) == place)
    allowed = ", or ".join(dict.fromkeys(same)).replace("Input should be", "must be")
    raise ValueError(f"{words}={first['input']!r}: {allowed}")


def _place(steps: tuple[int | str, ...], values: Any) -> list[str]:
    """The keys that lead to a value; pydantic names the members of unions among them."""
    found = []
    for number, step in enumerate(steps, start=1):
        if isinstance(step, int) or (isinstance(values, Mapping) and step in values):
            values = values[step]
            found.append(str(step))
        elif number == len(steps) and isinstance(values, Mapping):  # what is missing
            found.append(str(step))
    return found
