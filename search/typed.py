"""Plain data (YAML) into frozen dataclasses, guided by their type hints alone.

Supported hints: bool, int, float, str, None, Literal, tuple, dict[str, Any], dataclasses, unions of
these, and Annotated with `Rule`s. Which fields a run's configuration has is in `search.config`.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml

from search.errors import SearchError


class FieldError(SearchError):
    """What is wrong with the value at a dotted path; `from_dict` puts the source in front."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}" if path else problem)
        self.path, self.problem = path, problem


@dataclass(frozen=True)
class Rule:
    """A condition on a value beyond its type; `expected` completes "expected ..."."""

    expected: str
    holds: Callable[[Any], bool]


# Numbers that SQLite and a tensor can hold; also keeps inf, nan and 10**400 out of float().
_INT_LIMIT = 2**63 - 1
_FLOAT_LIMIT = sys.float_info.max


def read(hint: Any, value: Any, path: str = "") -> Any:
    """`value` as the type `hint`, lists as tuples; raises FieldError at the path that is wrong.

    A dataclass may list the names of ready-made instances in `NAMES`, each a classmethod without
    arguments; such a name then stands for the instance.
    """
    kind = typing.get_origin(hint) or hint
    reader = _read_dataclass if dataclasses.is_dataclass(kind) else _READERS[kind]
    return reader(hint, value, path)


def _read_annotated(hint: Any, value: Any, path: str) -> Any:
    kind, *rules = typing.get_args(hint)
    try:
        result = read(kind, value, path)
    except FieldError as error:
        if error.path != path:
            raise
        raise _refusal(path, _describe(hint), value) from None  # says type and range at once
    for rule in rules:
        if not rule.holds(result):
            raise _refusal(path, rule.expected, value)
    return result


def _read_union(hint: Any, value: Any, path: str) -> Any:
    """`value` as the first alternative that takes it."""
    for kind in typing.get_args(hint):
        try:
            return read(kind, value, path)
        except FieldError as error:
            # It was of this kind, and something inside is wrong: that is what helps the reader.
            if error.path != path:
                raise
    raise _refusal(path, _describe(hint), value)


def _read_tuple(hint: Any, value: Any, path: str) -> tuple[Any, ...]:
    kinds = typing.get_args(hint)
    if isinstance(value, (list, tuple)):
        if kinds[-1] is Ellipsis:
            kinds = (kinds[0],) * len(value)
        if len(kinds) == len(value):
            pairs = zip(kinds, value, strict=True)
            return tuple(read(kind, item, f"{path}.{i}") for i, (kind, item) in enumerate(pairs))
    raise _refusal(path, _describe(hint), value)


def _read_dataclass(hint: Any, value: Any, path: str) -> Any:
    if value in getattr(hint, "NAMES", ()):
        return getattr(hint, value)()
    if isinstance(value, Mapping):
        return _read_fields(hint, value, path)
    raise _refusal(path, _describe(hint), value)


def _read_options(hint: Any, value: Any, path: str) -> Any:
    if isinstance(value, Mapping):
        return _plain_options(value, path)
    raise _refusal(path, _describe(hint), value)


def _read_bool(hint: Any, value: Any, path: str) -> bool:
    if isinstance(value, bool):
        return value
    raise _refusal(path, _describe(hint), value)


def _read_scalar(hint: Any, value: Any, path: str) -> Any:
    """Numbers, texts, null and the choices of a Literal (which are texts)."""
    # Python counts True as an int; nobody who writes `steps: yes` means 1.
    if not isinstance(value, bool):
        if hint is int and isinstance(value, int) and abs(value) <= _INT_LIMIT:
            return value
        if hint is float and isinstance(value, (int, float)) and abs(value) <= _FLOAT_LIMIT:
            return float(value)
        if isinstance(value, str) and (hint is str or value in typing.get_args(hint)):
            return value
        if hint is types.NoneType and value is None:
            return None
    raise _refusal(path, _describe(hint), value)


_READERS: dict[Any, Callable[[Any, Any, str], Any]] = {
    Annotated: _read_annotated,
    typing.Union: _read_union,
    types.UnionType: _read_union,
    tuple: _read_tuple,
    dict: _read_options,
    bool: _read_bool,
} | dict.fromkeys((int, float, str, types.NoneType, Literal), _read_scalar)


def _read_fields(hint: Any, data: Mapping[str, Any], path: str) -> Any:
    """The dataclass `hint` from a mapping of its fields."""
    fields = {f.name: f for f in dataclasses.fields(hint)}
    types_ = typing.get_type_hints(hint, include_extras=True)
    for key in data:
        if key not in fields:
            raise FieldError(_join(path, key), _unknown(str(key), list(fields)))
    for name, one in fields.items():
        required = one.default is one.default_factory is dataclasses.MISSING
        if required and name not in data:
            raise FieldError(_join(path, name), f"is missing, expected {_describe(types_[name])}")
    values = {name: read(types_[name], data[name], _join(path, name)) for name in data}
    try:
        return hint(**values)
    except FieldError as error:  # from __post_init__, which does not know where it stands
        raise FieldError(_join(path, error.path), error.problem) from None


def _plain_options(value: Any, path: str, depth: int = 0) -> Any:
    """Free-form data, which must survive being written as JSON and read again."""
    if depth > 20:  # also what a YAML alias to itself runs into
        raise FieldError(path, "is nested too deeply")
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise _refusal(_join(path, key), "a key that is text", key)
        return {k: _plain_options(v, _join(path, k), depth + 1) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain_options(v, f"{path}.{i}", depth + 1) for i, v in enumerate(value)]
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (int, float)) and abs(value) <= _FLOAT_LIMIT:
        return value
    raise _refusal(path, "a number, a text, a list or a mapping", value)


def _describe(hint: Any) -> str:
    """What a value of this type looks like, to stand after "expected"."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        if typing.get_origin(args[0]) is tuple:
            return _describe(args[0])
        return str(args[1].expected)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(kind) for kind in args)
    if origin is Literal:
        return " or ".join(map(repr, args)) if len(args) < 3 else f"one of {', '.join(args)}"
    if origin is tuple and args[-1] is Ellipsis:
        return f"a list, each {_describe(args[0])}"
    if origin is tuple:
        return f"a list of {len(args)}, each {_describe(args[0])}"
    if origin is dict or dataclasses.is_dataclass(hint):
        return " or ".join(["a mapping", *map(repr, getattr(hint, "NAMES", ()))])
    names = {int: "a whole number", float: "a number", str: "a text", types.NoneType: "null"}
    names[bool] = "true or false"
    return names[hint]


def _refusal(path: str, expected: str, value: Any) -> FieldError:
    shown = "null" if value is None else repr(value)
    if len(shown) > 60:
        shown = shown[:57] + "..."
    return FieldError(path, f"expected {expected}, not {shown}")


def _unknown(key: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"unknown key; did you mean {near[0]!r}?" if near else (
        f"unknown key; expected one of {', '.join(known)}")  # fmt: skip


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def plain(value: Any) -> Any:
    """Lists for tuples all the way down: what JSON and YAML would give back."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


# --------------------------------------------------------------------------- overrides and the YAML


def override(tree: dict[str, Any], assignment: str) -> None:
    """Set one `a.b=value` in a configuration made plain, in place."""
    dotted, equals, text = assignment.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        raise SearchError(f"--set {assignment}: expected KEY.KEY=VALUE")
    value = _yaml(text, f"--set {assignment}")
    node: Any = tree
    for depth, key in enumerate(keys):
        here = ".".join(keys[:depth])
        last = depth == len(keys) - 1
        if isinstance(node, list):
            if not (key.isdecimal() and int(key) < len(node)):
                expected = f"an index below {len(node)}" if node else "nothing: the list is empty"
                raise SearchError(f"--set {assignment}: {here}: expected {expected}, not {key!r}")
            index: Any = int(key)
        elif isinstance(node, dict):
            # A last key may be new: task options are free, and `from_dict` knows the others.
            if not last and key not in node:
                raise SearchError(
                    f"--set {assignment}: {_join(here, key)}: {_unknown(key, list(node))}"
                )
            index = key
        else:
            shown = "null" if node is None else repr(node)
            raise SearchError(f"--set {assignment}: {here} is {shown}, which has no {key!r} to set")
        if last:
            node[index] = value
        node = node[index]


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice and reads 1e-3 as the number that it is."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        # Here and not in construct_mapping: there, merge keys (<<) have already added entries.
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"key {key.value!r} given twice", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        return node


# YAML 1.1, which PyYAML follows, wants a dot and a sign: 1.0e-3 is a number there and 1e-3 a text.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+\Z"),
    list("-+.0123456789"),
)


def parse_yaml(file: Path) -> Any:
    """What a YAML file holds; raises SearchError with the place of what is wrong."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is not UTF-8 text"
        raise SearchError(f"{file}: cannot be read: {reason}") from None
    return _yaml(text, str(file))


def _yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - it is a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise SearchError(f"{source}: {where}{problem}") from None
    except (RecursionError, ValueError) as error:  # a date that is none, brackets without end
        raise SearchError(f"{source}: not usable as YAML: {error}") from None
