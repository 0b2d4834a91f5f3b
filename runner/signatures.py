"""What a `_target_` accepts, read from its source: importing Lightning to ask it takes seconds.

The source file is found without importing anything, `from x import y` is followed, a class without
an `__init__` has its base's. Where the source cannot tell, nothing is claimed: everything fits.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

# A constructor that hands its keywords on: where to.
FORWARDS = {"pytorch_lightning.loggers.wandb.WandbLogger": "wandb.sdk.wandb_init.init"}

_PLAIN: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "str": (str,),
    "None": (type(None),),
    "list": (list,),
    "List": (list,),
    "Sequence": (list,),
    "Iterable": (list,),
    "tuple": (list,),
    "Tuple": (list,),
    "dict": (dict,),
    "Dict": (dict,),
    "Mapping": (dict,),
}


@dataclass
class Source:
    """One parsed file: what its names stand for."""

    module: str
    is_package: bool
    names: dict[str, ast.stmt | tuple[str, str]] = field(default_factory=dict)
    stars: list[str] = field(default_factory=list)

    def absolute(self, node: ast.ImportFrom) -> str:
        """Return the full name of the module that a `from ... import` names."""
        if not node.level:
            return node.module or ""
        parts = self.module.split(".")
        parts = parts[: len(parts) - node.level + self.is_package]
        return ".".join([*parts, *([node.module] if node.module else [])])


@dataclass(frozen=True)
class Definition:
    """A class or function, and the file in which its annotations mean what they mean."""

    source: Source
    node: ast.ClassDef | ast.FunctionDef | ast.Assign | ast.AnnAssign

    @property
    def path(self) -> str:
        """The full dotted name of the place where it is defined."""
        return f"{self.source.module}.{getattr(self.node, 'name', '')}"


@dataclass(frozen=True)
class Parameter:
    """One argument: its annotation, if any, and whether it must be given."""

    source: Source
    annotation: ast.expr | None
    required: bool


@dataclass(frozen=True)
class Signature:
    """The arguments by name; `open` if others are accepted as well."""

    parameters: dict[str, Parameter]
    open: bool


def find(target: str) -> Definition | None:
    """Return the definition behind a dotted name, None if no source holds it."""
    parts = target.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        source = load(".".join(parts[:cut]))
        if source is not None:
            found = _lookup(source, parts[cut])
            return found if cut == len(parts) - 1 else _member(found, parts[cut + 1 :])
    return None


def exists(module: str) -> bool:
    """Whether a module of this name can be found without importing its package."""
    return _locate(module) is not None


def submodules(package: str) -> list[str]:
    """Return the names of what lies in a package, without importing it."""
    path = _locate(package)
    return sorted(p.stem for p in path.parent.iterdir() if p.stem[0] != "_") if path else []


def signature(target: str) -> Signature | None:
    """Return what a class or function accepts, None if its source cannot tell."""
    found = find(target)
    return None if found is None else _signature(found)


def attribute(target: str, name: str) -> Any:
    """Return a class attribute written as a literal, in the class or its bases; else None."""
    found = find(target)
    for definition in _ancestry(found) if found else ():
        for statement in getattr(definition.node, "body", ()):
            for bound, value in _bindings(statement):
                if bound == name and value is not None:
                    try:
                        return ast.literal_eval(value)
                    except ValueError:
                        return None
    return None


def nearest(word: str, known: Iterable[str], prefix: str = "") -> str:
    """Return " Did you mean X?" for the closest known word, else the whole list if it is short.

    Args:
        word: What was written.
        known: What could have been.
        prefix: Put before each of them, e.g. "trainer.".
    """
    options = sorted(set(known))
    if close := difflib.get_close_matches(word, options, n=1, cutoff=0.6):
        return f" Did you mean {prefix}{close[0]}?"
    shown = ", ".join(f"{prefix}{option}" for option in options[:20])
    return f" There are: {shown}{', ...' if len(options) > 20 else ''}." if options else ""


def fields(definition: Definition) -> Signature:
    """Return the annotated fields of a dataclass or TypedDict, those of its bases included."""
    found: dict[str, Parameter] = {}
    for ancestor in reversed(list(_ancestry(definition))):
        for statement in getattr(ancestor.node, "body", ()):
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                required = statement.value is None and not _is_total_false(ancestor.node)
                found[statement.target.id] = Parameter(
                    ancestor.source, statement.annotation, required
                )
    return Signature(found, open=False)


def complaints(key: str, value: Any, parameter: Parameter) -> list[str]:
    """Return what is wrong with a value for an argument, one sentence each; [] if nothing.

    Args:
        key: The full config key, to begin each sentence with.
        value: Plain containers.
        parameter: The argument.
    """
    if parameter.annotation is None:
        return []
    return _check(key, value, parameter.annotation, parameter.source)


@cache
def load(module: str) -> Source | None:
    """Parse a module's file, None if there is none."""
    path = _locate(module)
    if path is None or path.suffix != ".py":
        return None
    source = Source(module, path.name == "__init__.py")
    for statement in _statements(ast.parse(path.read_text(encoding="utf-8")).body):
        if isinstance(statement, ast.ImportFrom):
            origin = source.absolute(statement)
            for alias in statement.names:
                if alias.name == "*":
                    source.stars.append(origin)
                else:
                    source.names.setdefault(alias.asname or alias.name, (origin, alias.name))
        elif isinstance(statement, ast.ClassDef | ast.FunctionDef):
            source.names[statement.name] = statement
        else:
            for name, value in _bindings(statement):
                if value is not None:
                    source.names[name] = statement
    return source


@cache
def _locate(module: str) -> Path | None:
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
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
            for handler in getattr(statement, "handlers", ()):
                yield from _statements(handler.body)


def _bindings(statement: ast.stmt) -> list[tuple[str, ast.expr | None]]:
    if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
        return [(statement.target.id, statement.value)]
    if isinstance(statement, ast.Assign):
        return [
            (name.id, statement.value) for name in statement.targets if isinstance(name, ast.Name)
        ]
    return []


def _lookup(
    source: Source, name: str, seen: frozenset[tuple[str, str]] = frozenset()
) -> Definition | None:
    if (source.module, name) in seen:
        return None
    seen |= {(source.module, name)}
    entry = source.names.get(name)
    if isinstance(entry, tuple):
        origin = load(entry[0])
        return None if origin is None else _lookup(origin, entry[1], seen)
    if isinstance(entry, ast.Assign | ast.AnnAssign) and isinstance(entry.value, ast.Name):
        return _lookup(source, entry.value.id, seen)
    if isinstance(entry, ast.ClassDef | ast.FunctionDef | ast.Assign | ast.AnnAssign):
        return Definition(source, entry)
    for star in source.stars:
        origin = load(star)
        if origin is not None and (found := _lookup(origin, name, seen)) is not None:
            return found
    return None


def _member(found: Definition | None, path: list[str]) -> Definition | None:
    for definition in _ancestry(found) if found and len(path) == 1 else ():
        for statement in getattr(definition.node, "body", ()):
            if isinstance(statement, ast.FunctionDef) and statement.name == path[0]:
                return Definition(definition.source, statement)
    return None


def _ancestry(definition: Definition) -> Iterator[Definition]:
    """Yield a class and then its bases, as far as their source is found."""
    yield definition
    for base in getattr(definition.node, "bases", ()):
        parent = _resolve(base, definition.source)
        if parent is not None and isinstance(parent.node, ast.ClassDef):
            yield from _ancestry(parent)


def _resolve(expression: ast.expr, source: Source) -> Definition | None:
    """Return what a name or dotted name in a file stands for."""
    if isinstance(expression, ast.Subscript):
        return _resolve(expression.value, source)
    if isinstance(expression, ast.Name):
        return _lookup(source, expression.id)
    if isinstance(expression, ast.Attribute):
        # `import pytorch_lightning as pl; class A(pl.Callback)`: the aliases of plain imports.
        path = ast.unparse(expression).split(".")
        for statement in ast.walk(_tree(source.module)):
            if isinstance(statement, ast.Import):
                for alias in statement.names:
                    if (alias.asname or alias.name.split(".")[0]) == path[0]:
                        origin = alias.name if alias.asname else path[0]
                        return find(".".join([origin, *path[1:]]))
    return None


@cache
def _tree(module: str) -> ast.Module:
    path = _locate(module)
    assert path is not None
    return ast.parse(path.read_text(encoding="utf-8"))


def _signature(definition: Definition) -> Signature | None:
    node = definition.node
    if isinstance(node, ast.FunctionDef):
        decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
        return _arguments(definition.source, node, skip_first="classmethod" in decorators)
    if not isinstance(node, ast.ClassDef):
        return None
    if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        return fields(definition)
    ancestry = list(_ancestry(definition))
    own: Signature | None = None
    for ancestor in ancestry:
        init = _member_of(ancestor.node, "__init__")
        if init is None:
            continue
        found = _arguments(ancestor.source, init, skip_first=True)
        own = (
            found if own is None else Signature({**found.parameters, **own.parameters}, found.open)
        )
        if own.open and ancestor.path in FORWARDS:
            forwarded = signature(FORWARDS[ancestor.path])
            assert forwarded is not None, f"{FORWARDS[ancestor.path]} has moved"
            return Signature({**forwarded.parameters, **own.parameters}, forwarded.open)
        if not own.open or not _hands_on(init):
            return own
    return own


def _member_of(node: ast.AST, name: str) -> ast.FunctionDef | None:
    found = None
    for statement in getattr(node, "body", ()):
        if isinstance(statement, ast.FunctionDef) and statement.name == name:
            found = statement
    return found


def _hands_on(init: ast.FunctionDef) -> bool:
    """Whether an `__init__` hands its further keywords on to its base's."""
    for call in ast.walk(init):
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "super().__init__":
            return any(keyword.arg is None for keyword in call.keywords)
    return False


def _arguments(source: Source, node: ast.FunctionDef, skip_first: bool) -> Signature:
    arguments = [*node.args.posonlyargs, *node.args.args]
    required = len(arguments) - len(node.args.defaults)
    found = {
        argument.arg: Parameter(source, argument.annotation, position < required)
        for position, argument in enumerate(arguments)
        if position or not skip_first
    }
    for argument, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True):
        found[argument.arg] = Parameter(source, argument.annotation, default is None)
    return Signature(found, open=node.args.kwarg is not None)


def _is_total_false(node: ast.AST) -> bool:
    return any(
        word.arg == "total" and isinstance(word.value, ast.Constant) and word.value.value is False
        for word in getattr(node, "keywords", ())
    )


def _check(key: str, value: Any, annotation: ast.expr, source: Source) -> list[str]:
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        annotation = ast.parse(annotation.value, mode="eval").body
    wrong = [f"{key}={value!r} must be {ast.unparse(annotation)}"]
    options = _alternatives(annotation)
    if options is not None:
        found = [_check(key, value, option, source) for option in options]
        if any(not problems for problems in found):
            return []
        deeper = [problems for problems in found if not problems[0].startswith(f"{key}=")]
        return deeper[0] if isinstance(value, dict) and deeper else wrong
    if isinstance(annotation, ast.Constant):
        return [] if annotation.value is None and value is None else wrong
    head = annotation.value if isinstance(annotation, ast.Subscript) else annotation
    name = ast.unparse(head).split(".")[-1]
    inside = annotation.slice if isinstance(annotation, ast.Subscript) else None
    if name in ("Annotated", "Required", "NotRequired", "ClassVar", "Final") and inside is not None:
        first = inside.elts[0] if isinstance(inside, ast.Tuple) else inside
        return _check(key, value, first, source)
    if name == "Literal" and inside is not None:
        allowed = ast.literal_eval(inside)
        allowed = allowed if isinstance(allowed, tuple) else (allowed,)
        fits = any(value == option and type(value) is type(option) for option in allowed)
        return [] if fits else [f"{key}={value!r} must be one of {', '.join(map(str, allowed))}"]
    if name in _PLAIN:
        plain = _PLAIN[name]
        if not isinstance(value, plain) or (isinstance(value, bool) and bool not in plain):
            return wrong
        return _check_items(key, value, inside, source)
    found_node = _resolve(head, source)
    if found_node is None:
        return []
    if isinstance(found_node.node, ast.Assign | ast.AnnAssign):  # an alias of a type
        alias = found_node.node.value
        return _check(key, value, alias, found_node.source) if isinstance(alias, ast.expr) else []
    if any(ast.unparse(base).split(".")[-1] == "TypedDict" for base in _all_bases(found_node)):
        if not isinstance(value, dict):
            keys = ", ".join(fields(found_node).parameters)
            return [f"{key}={value!r} must be a group of keys: {keys}"]
        return bind(key, value, fields(found_node))
    return []


def bind(key: str, values: dict[str, Any], accepted: Signature) -> list[str]:
    """Return what is wrong with keyword arguments: unknown, missing, or of the wrong type.

    Args:
        key: The config key of the node that holds them.
        values: The arguments, plain.
        accepted: What they are bound to.
    """
    problems: list[str] = []
    for name, value in values.items():
        if name in accepted.parameters:
            problems += complaints(f"{key}.{name}", value, accepted.parameters[name])
        elif not accepted.open:
            problems.append(
                f"{key}.{name}: no such key.{nearest(name, list(accepted.parameters), f'{key}.')}"
            )
    for name, parameter in accepted.parameters.items():
        if parameter.required and name not in values and name not in ("args", "kwargs"):
            problems.append(f"{key}.{name}: missing, and it has no default")
    return problems


def _all_bases(definition: Definition) -> list[ast.expr]:
    return [
        base for ancestor in _ancestry(definition) for base in getattr(ancestor.node, "bases", ())
    ]


def _alternatives(annotation: ast.expr) -> list[ast.expr] | None:
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        return [annotation.left, annotation.right]
    if isinstance(annotation, ast.Subscript):
        name = ast.unparse(annotation.value).split(".")[-1]
        inside = annotation.slice
        if name == "Optional":
            return [inside, ast.Constant(None)]
        if name == "Union":
            return list(inside.elts) if isinstance(inside, ast.Tuple) else [inside]
    return None


def _check_items(key: str, value: Any, inside: ast.expr | None, source: Source) -> list[str]:
    if isinstance(value, list) and inside is not None:
        variadic = isinstance(inside, ast.Tuple)
        if variadic and isinstance(inside, ast.Tuple) and len(inside.elts) == len(value):
            kinds: list[ast.expr] = inside.elts
        elif variadic and isinstance(inside, ast.Tuple):
            if not (len(inside.elts) == 2 and ast.unparse(inside.elts[1]) == "..."):
                return [f"{key}={value!r} must hold {len(inside.elts)} values"]
            kinds = [inside.elts[0]] * len(value)
        else:
            kinds = [inside] * len(value)
        items = zip(value, kinds, strict=True)
        return [
            p for i, (v, kind) in enumerate(items) for p in _check(f"{key}[{i}]", v, kind, source)
        ]
    if isinstance(value, dict) and isinstance(inside, ast.Tuple) and len(inside.elts) == 2:
        kind = inside.elts[1]
        return [p for name, v in value.items() for p in _check(f"{key}.{name}", v, kind, source)]
    return []
