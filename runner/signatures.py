"""What a `_target_` accepts, read from its source: importing Lightning to ask it takes seconds.

A name is followed through `from x import y` to its source file without importing anything; a class
has its bases' arguments where it hands keywords on. What the source cannot tell is let through.
"""

from __future__ import annotations

import ast
import importlib.util
import math
import operator
import re
import sys
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union

import annotated_types
from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen, MultipleOf

from runner.errors import close, nearest

# A constructor that hands its keywords on to a function: which.
FORWARDS = {"pytorch_lightning.loggers.wandb.WandbLogger": "wandb.sdk.wandb_init.init"}

# Not read: of their names only those of `typing` say what a value may be, and these are known.
UNREAD = sys.stdlib_module_names | {"typing_extensions"}

# Packages whose classes stand in annotations for objects that a node makes.
LIGHTNING = ("lightning_fabric", "pytorch_lightning")

# Python types of plain values, by the types that annotations name.
PLAIN: dict[Any, tuple[type, ...]] = {
    **{kind: (kind,) for kind in (int, bool, str, NoneType)},
    **dict.fromkeys((list, tuple, Sequence, Iterable, Collection), (list,)),
    **dict.fromkeys((dict, Mapping), (dict,)),
    float: (int, float),
}

# Whether a value keeps a bound, by the name of annotated_types' field.
HOLDS: dict[str, Callable[[Any, Any], bool]] = {
    **{name: getattr(operator, name) for name in ("gt", "ge", "lt", "le")},
    "multiple_of": lambda value, unit: value % unit == 0,
    "min_length": lambda value, least: len(value) >= least,
    "max_length": lambda value, most: len(value) <= most,
}


@dataclass
class Source:
    """One parsed file: its names, each a statement or (module, name there); "" is the module."""

    module: str
    names: dict[str, ast.stmt | tuple[str, str]] = field(default_factory=dict)
    stars: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Definition:
    """A statement that defines a name, and the file in which its annotations have their meaning."""

    source: Source
    node: ast.stmt

    @property
    def kinds(self) -> list[str]:
        """The names of a class and its bases; nothing of a function."""
        return [each.node.name for each in self.ancestry() if isinstance(each.node, ast.ClassDef)]

    @property
    def body(self) -> list[ast.stmt]:
        """The statements inside it."""
        return getattr(self.node, "body", [])

    @property
    def whole(self) -> bool:
        """Whether the source of every base is found, so that all that it takes is known."""
        bases = [_resolve(base, self.source) for base in getattr(self.node, "bases", ())]
        return all(base is not None and base.whole for base in bases)

    def ancestry(self) -> Iterator[Definition]:
        """Yield this class and then its bases, as far as their source is found."""
        yield self
        for base in getattr(self.node, "bases", ()):
            if (parent := _resolve(base, self.source)) is not None:
                yield from parent.ancestry()


@dataclass(frozen=True)
class Parameter:
    """One argument: whether it must be given, and its default and annotation as in the source."""

    required: bool
    annotation: ast.expr | None = None
    source: Source | None = None
    default: str = ""

    @property
    def hint(self) -> Any:
        """Its type, Any if only an import could tell; files are read for it now, not before."""
        return _hint(self.annotation, self.source)


@dataclass(frozen=True)
class Signature:
    """The arguments by name; `open` if others are accepted as well."""

    parameters: dict[str, Parameter]
    open: bool = False


def find(target: Any) -> Definition | None:
    """Return the definition behind a dotted name, None if no source holds it, or it is no name."""
    parts = str(target).split(".")
    for cut in range(len(parts) - 1, 0, -1):
        source = load(".".join(parts[:cut]))
        if source is not None:
            found = _lookup(source, parts[cut])
            for name in parts[cut + 1 :]:  # a method of a class
                found = _member(found, name) if found else None
            return found
    return None


def submodules(package: str) -> list[str]:
    """Return the names of what lies in a package, without importing it."""
    path = _locate(package)
    return sorted(p.stem for p in path.parent.iterdir() if p.stem[0] != "_") if path else []


def attribute(target: str, name: str) -> Any:
    """Return a class attribute written as a literal, in the class or its bases; else None."""
    found = find(target)
    for definition in found.ancestry() if found else ():
        for statement in definition.body:
            if name in _bound(statement) and getattr(statement, "value", None) is not None:
                try:
                    return ast.literal_eval(statement.value)  # type: ignore[attr-defined]
                except ValueError:
                    return None
    return None


def promise(node: Any, name: str) -> Any:
    """Return what the class of a config node says under a name; None if it or the node does not."""
    return attribute(str(node.get("_target_")), name) if node else None


def fields(definition: Definition) -> Signature:
    """Return the annotated fields of a dataclass or TypedDict, those of its bases included."""
    found: dict[str, Parameter] = {}
    for ancestor in reversed(list(definition.ancestry())):
        keywords = {k.arg: ast.unparse(k.value) for k in getattr(ancestor.node, "keywords", ())}
        for statement in ancestor.body:
            if isinstance(statement, ast.AnnAssign):
                required = statement.value is None and keywords.get("total") != "False"
                default = ast.unparse(statement.value) if statement.value else ""
                found[ast.unparse(statement.target)] = Parameter(
                    required, statement.annotation, ancestor.source, default
                )
    return Signature(found)


def signature(target: str) -> Signature | None:
    """Return what a class or function accepts, None if there is no such thing."""
    found = find(target)
    if found is None:
        return None
    if isinstance(found.node, ast.FunctionDef):
        return _arguments(found.source, found.node, "classmethod" in _decorators(found.node))
    if any("dataclass" in name for name in _decorators(found.node)):
        return fields(found)
    known: dict[str, Parameter] = {}
    handed: tuple[int, frozenset[str]] = (0, frozenset())
    for ancestor in found.ancestry():
        init = _member(ancestor, "__init__", "__new__", inherited=False)
        if init is None or not isinstance(init.node, ast.FunctionDef):
            continue
        own = _arguments(init.source, init.node, skip_first=True)
        places, names = handed
        left = {
            name: parameter
            for place, (name, parameter) in enumerate(own.parameters.items())
            if place >= places and name not in names
        }
        known = {**left, **known}
        forward = FORWARDS.get(f"{ancestor.source.module}.{getattr(ancestor.node, 'name', '')}")
        if forward is not None and (further := signature(forward)) is not None:
            return Signature({**further.parameters, **known}, further.open)
        further_on = _handed(init.node)
        if not own.open or further_on is None:
            return Signature(known, own.open)
        handed = further_on
    return Signature(known, open=not known and not found.whole)


def keywords(function: str) -> dict[str, Parameter] | None:
    """Return the keyword-only arguments of a function or method, None if there is no such thing."""
    found = find(function)
    if found is None or not isinstance(found.node, ast.FunctionDef):
        return None
    names = [argument.arg for argument in found.node.args.kwonlyargs]
    parameters = _arguments(found.source, found.node, skip_first=False).parameters
    return {name: parameters[name] for name in names}


def dataclass_of(parameter: Parameter) -> Definition | None:
    """Return the dataclass that an argument takes, None if it takes anything else."""
    if parameter.source is None or not isinstance(parameter.annotation, ast.Name):
        return None
    found = _resolve(parameter.annotation, parameter.source)
    kinds = _decorators(found.node) if found else ()
    return found if any("dataclass" in name for name in kinds) else None


def fields_of(target: str) -> dict[str, Parameter]:
    """Return the annotated fields of a dataclass or TypedDict of ours by its dotted name."""
    found = find(target)
    assert found is not None
    return fields(found).parameters


def bind(key: str, values: Mapping[str, Any], accepted: Signature) -> list[str]:
    """Return what is wrong with keyword arguments: unknown, missing, or of the wrong type.

    Args:
        key: The config key of the node that holds them; "" at the top.
        values: The arguments, plain.
        accepted: What they are bound to.
    """
    prefix = f"{key}." if key else ""
    problems: list[str] = []
    far: list[str] = []  # unknown, and near to nothing: what is known is said once, behind the last
    for name, value in values.items():
        if name in accepted.parameters:
            problems += _problems(f"{prefix}{name}", value, accepted.parameters[name].hint)
        elif not accepted.open and (hint := close(name, accepted.parameters, prefix)):
            problems.append(f"{prefix}{name}: no such key.{hint}")
        elif not accepted.open:
            far.append(f"{prefix}{name}")
    if far:
        problems.append(f"{', '.join(far)}: no such key.{nearest('', accepted.parameters, prefix)}")
    for name, parameter in accepted.parameters.items():
        if parameter.required and name not in values:
            problems.append(f"{prefix}{name}: missing, and it has no default")
    return problems


@cache
def load(module: str) -> Source | None:
    """Parse a module's file, None if there is none."""
    path = _locate(module)
    if path is None or path.suffix != ".py":
        return None
    source = Source(module)
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for statement in _statements(ast.parse(path.read_text(encoding="utf-8")).body):
        if isinstance(statement, ast.ImportFrom):
            parents = package[: len(package) + 1 - statement.level] if statement.level else []
            origin = ".".join([*parents, *([statement.module] if statement.module else [])])
            for alias in statement.names:
                if alias.name == "*":
                    source.stars.append(origin)
                else:
                    source.names.setdefault(alias.asname or alias.name, (origin, alias.name))
        elif isinstance(statement, ast.Import):
            for alias in statement.names:
                top = alias.name.split(".")[0]
                source.names.setdefault(
                    alias.asname or top, (alias.name if alias.asname else top, "")
                )
        else:
            source.names.update(dict.fromkeys(_bound(statement), statement))
    return source


@cache
def _locate(module: str) -> Path | None:
    top, *rest = module.split(".")
    known = top.isidentifier() and top not in UNREAD
    spec = importlib.util.find_spec(top) if known else None
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin and spec.has_location else None
    for folder in spec.submodule_search_locations or ():
        place = Path(folder).joinpath(*rest)
        for candidate in (place / "__init__.py", place.with_name(f"{place.name}.py")):
            if candidate.is_file():
                return candidate
    return None


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield a module's statements, those under `if` and `try` too."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.If | ast.Try):
            yield from _statements(statement.body + statement.orelse)


def _bound(statement: ast.stmt) -> list[str]:
    """Return the names that a statement defines."""
    if isinstance(statement, ast.ClassDef | ast.FunctionDef):
        return [statement.name]
    if isinstance(statement, ast.AnnAssign):
        return [ast.unparse(statement.target)]
    return [ast.unparse(t) for t in statement.targets] if isinstance(statement, ast.Assign) else []


def _lookup(source: Source, name: str, seen: tuple[tuple[str, str], ...] = ()) -> Definition | None:
    """Return what a name in a file stands for, wherever it was imported from."""
    if (source.module, name) in seen:
        return None
    seen = (*seen, (source.module, name))
    entry = source.names.get(name)
    if isinstance(entry, ast.Assign | ast.AnnAssign) and isinstance(entry.value, ast.Name):
        return _lookup(source, entry.value.id, seen)
    if isinstance(entry, ast.stmt):
        return Definition(source, entry)
    for module, there in [entry] if entry else [(star, name) for star in source.stars]:
        origin = load(module) if there else None
        if origin is not None and (found := _lookup(origin, there, seen)) is not None:
            return found
    return None


def _resolve(expression: ast.expr, source: Source) -> Definition | None:
    """Return what a name, or a dotted name that begins with an imported module, stands for."""
    if isinstance(expression, ast.Subscript):
        expression = expression.value
    first, *rest = ast.unparse(expression).split(".")
    entry = source.names.get(first)
    if rest and isinstance(entry, tuple):
        return find(".".join([entry[0], *([entry[1]] if entry[1] else []), *rest]))
    return _lookup(source, first)


def _member(found: Definition, *names: str, inherited: bool = True) -> Definition | None:
    """Return a class's method, the first of the names that it has."""
    for definition in found.ancestry() if inherited else (found,):
        methods = {s.name: s for s in definition.body if isinstance(s, ast.FunctionDef)}
        for name in names:
            if name in methods:
                return Definition(definition.source, methods[name])
    return None


def _decorators(node: ast.stmt) -> set[str]:
    return {ast.unparse(decorator) for decorator in getattr(node, "decorator_list", ())}


def _handed(init: ast.FunctionDef) -> tuple[int, frozenset[str]] | None:
    """Return what an `__init__` itself gives its base's beside the keywords that it hands on.

    Returns:
        How many positional arguments and which keywords; None if it hands no keywords on.
    """
    for call in ast.walk(init):
        if (
            isinstance(call, ast.Call)
            and re.fullmatch(r"super\(.*\)\.__init__", ast.unparse(call.func))
            and any(keyword.arg is None for keyword in call.keywords)
        ):
            names = frozenset(keyword.arg for keyword in call.keywords if keyword.arg)
            return sum(not isinstance(a, ast.Starred) for a in call.args), names
    return None


def _arguments(source: Source, node: ast.FunctionDef, skip_first: bool) -> Signature:
    positional = [*node.args.posonlyargs, *node.args.args]
    missing = [None] * (len(positional) - len(node.args.defaults))
    pairs = list(zip(positional, [*missing, *node.args.defaults], strict=True))[skip_first:]
    pairs += zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
    found = {
        a.arg: Parameter(
            default is None, a.annotation, source, ast.unparse(default) if default else ""
        )
        for a, default in pairs
    }
    return Signature(found, open=node.args.kwarg is not None)


class _Names(dict[str, Any]):
    """What names in a file's annotations stand for; Any where only an import could tell."""

    def __init__(self, source: Source) -> None:
        super().__init__({name: getattr(typing, name) for name in typing.__all__})
        self.update({kind.__name__: kind for kind in PLAIN if kind is not NoneType})
        self.source = source

    def __missing__(self, name: str) -> Any:
        found = _lookup(self.source, name)
        if found is None:
            return Any
        if found.source.module == annotated_types.__name__:  # imports nothing heavy itself
            return getattr(annotated_types, name)
        if isinstance(found.node, ast.Assign | ast.AnnAssign):  # an alias of a type
            return _hint(found.node.value, found.source)
        roots = [each.source.module.split(".")[0] for each in found.ancestry()]
        if found.kinds and any(root in LIGHTNING for root in roots):
            return type(name, (_Built,), {})
        if any(isinstance(statement, ast.FunctionDef) for statement in found.body):
            return Any  # no TypedDict, which has no methods
        bases = [ast.unparse(b) for a in found.ancestry() for b in getattr(a.node, "bases", ())]
        if any(base.split(".")[-1] == "TypedDict" for base in bases):
            return type(name, (_Group,), {"definition": found})
        return Any


class _Built:
    """Stands for a class of Lightning's or ours below one: a node's `_target_` makes an object."""


class _Group(dict[str, Any]):
    """Stands for a TypedDict."""

    definition: Definition


def _hint(annotation: ast.expr | None, source: Source | None) -> Any:
    """Return an annotation as a type, Any if only an import could tell."""
    if annotation is None or source is None:
        return Any
    names = _Names(source)
    try:
        code = compile(ast.Expression(annotation), source.module, "eval")
        found = eval(code, {"__builtins__": {}}, names)
        return eval(found, {"__builtins__": {}}, names) if isinstance(found, str) else found
    except (AttributeError, NameError, SyntaxError, TypeError):
        return Any


def _problems(key: str, value: Any, hint: Any) -> list[str]:
    """Return what is wrong with a value of a type, each sentence beginning with its key."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    wrong = [f"{key}={value!r} must be {words(hint)}"]
    if origin in (Union, UnionType):
        each = [_problems(key, value, option) for option in options]
        mismatches = [[f"{key}={value!r} must be {words(option)}"] for option in options]
        closer = [problems for problems in each if problems not in mismatches]
        return [] if [] in each else closer[0] if closer else wrong
    if origin is Literal:
        fits = any(value == option and type(value) is type(option) for option in options)
        return [] if fits else wrong
    if origin is typing.Annotated:
        found = _problems(key, value, options[0])
        if found == [f"{key}={value!r} must be {words(options[0])}"]:
            return wrong
        bounds = _bounds(hint).items() if value is not None else ()
        return found or ([] if all(HOLDS[name](value, bound) for name, bound in bounds) else wrong)
    if origin in (typing.Required, typing.NotRequired, typing.ClassVar):
        return _problems(key, value, options[0])
    if isinstance(hint, type) and issubclass(hint, _Group):
        return bind(key, value, fields(hint.definition)) if isinstance(value, dict) else wrong
    if isinstance(hint, type) and issubclass(hint, _Built):
        made = find(value.get("_target_")) if isinstance(value, dict) else None
        return [] if made is not None and hint.__name__ in made.kinds else wrong
    kinds = PLAIN.get(origin or hint)
    if kinds is None:
        return []
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        return wrong
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return [f"{key}={value} must be a number of 64 bits"]
    if isinstance(value, float) and not math.isfinite(value):
        return [f"{key}={value} must be a finite number"]
    if isinstance(value, dict) and len(options) == 2:
        return [p for name, v in value.items() for p in _problems(f"{key}.{name}", v, options[1])]
    if isinstance(value, list) and options:
        every = origin is not tuple or options[-1] is Ellipsis
        kinds_of_items = [options[0]] * len(value) if every else options
        if len(kinds_of_items) != len(value):
            return wrong
        items = enumerate(zip(value, kinds_of_items, strict=True))
        return [p for i, (v, kind) in items for p in _problems(f"{key}[{i}]", v, kind)]
    return []


def _bounds(hint: Any) -> dict[str, Any]:
    """Return what an annotation demands of a value beside its type, by the names of its fields."""
    found: dict[str, Any] = {}
    for mark in hint.__metadata__:
        parts = mark if isinstance(mark, annotated_types.GroupedMetadata) else (mark,)
        for part in parts:
            if isinstance(part, Gt | Ge | Lt | Le | MultipleOf | MinLen | MaxLen):
                (name,) = part.__slots__
                found[name] = getattr(part, name)
    return found


def _range(bounds: Mapping[str, Any]) -> str:
    """Say what bounds allow, after the name of a type."""
    least = bounds.get("gt", bounds.get("ge"))
    most = bounds.get("lt", bounds.get("le"))
    said = ""
    if least is not None and most is not None:
        opening, closing = "(" if "gt" in bounds else "[", ")" if "lt" in bounds else "]"
        said = f" in {opening}{least}, {most}{closing}"
    elif least is not None:
        said = f" above {least}" if "gt" in bounds else f" of at least {least}"
    elif most is not None:
        said = f" below {most}" if "lt" in bounds else f" of at most {most}"
    if "multiple_of" in bounds:
        said += f", a multiple of {bounds['multiple_of']}"
    shortest, longest = bounds.get("min_length"), bounds.get("max_length")
    if shortest is not None and shortest == longest:
        said += f" of {shortest} items"
    elif shortest is not None:
        said += f" of at least {shortest} item{'s' if shortest > 1 else ''}"
    return said


def words(hint: Any) -> str:
    """Name what a type allows."""
    if typing.get_origin(hint) in (Union, UnionType):
        return " or ".join(words(option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is Literal:
        return f"one of {', '.join(dict.fromkeys(map(str, typing.get_args(hint))))}"
    if typing.get_origin(hint) is typing.Annotated:
        return words(typing.get_args(hint)[0]) + _range(_bounds(hint))
    if isinstance(hint, type) and issubclass(hint, _Group):
        return f"keys: {', '.join(fields(hint.definition).parameters)}"
    hint = PLAIN.get(typing.get_origin(hint), (hint,))[0]
    if hint is NoneType:
        return "null"
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
