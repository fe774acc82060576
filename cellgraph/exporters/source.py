"""Python as text: expressions that write themselves when computed with, names that are free, lines.

Nothing here knows of cells. `Source` is run through the `eager` column of the op table, which is
how an op gets its source code without a second table.
"""

from __future__ import annotations

import builtins
import keyword
from collections.abc import Callable, Iterable, Sequence

#: Lines are broken to fit, indented as deep as the body of a loop in a method.
COLUMNS, INDENT = 100, 12

# How strongly Python's operators bind; calls, attributes and names bind tightest.
_COMPARE, _SUM, _PRODUCT, _UNARY, _ATOM = range(1, 6)


class Source:
    """A Python expression: arithmetic, calls and attributes on it give a larger expression."""

    def __init__(self, text: str, binds: int = _ATOM) -> None:
        self._text = text
        self._binds = binds

    def __str__(self) -> str:
        return self._text

    def _tensor(self) -> Source:
        """Itself, in a place that takes a tensor but no number."""
        return self

    def _guarded(self, least: int) -> str:
        return self._text if self._binds >= least else f"({self._text})"

    def __getattr__(self, name: str) -> Source:
        if name.startswith("__"):
            raise AttributeError(name)
        return Source(f"{self._tensor()._guarded(_ATOM)}.{name}")

    def __call__(self, *args: object, **named: object) -> Source:
        parts = [str(_source(a)._tensor()) for a in args]
        parts += [f"{name}={_source(a)}" for name, a in named.items()]
        return Source(f"{self._guarded(_ATOM)}({', '.join(parts)})")

    def __neg__(self) -> Source:
        return Source(f"-{self._tensor()._guarded(_ATOM)}", _UNARY)  # `--a` looks like an accident

    def __add__(self, other: object) -> Source:
        return _infix(self, "+", other, _SUM)

    def __sub__(self, other: object) -> Source:
        return _infix(self, "-", other, _SUM)

    def __mul__(self, other: object) -> Source:
        return _infix(self, "*", other, _PRODUCT)

    def __truediv__(self, other: object) -> Source:
        return _infix(self, "/", other, _PRODUCT)

    def __gt__(self, other: object) -> Source:
        return _infix(self._tensor(), ">", other, _COMPARE)


class Number(Source):
    """A number of the cell. Beside a tensor it stands as it is; anywhere else `tensor` gives it."""

    def __init__(self, text: str, tensor: Callable[[], Source]) -> None:
        super().__init__(text, _UNARY if text.startswith("-") else _ATOM)
        self._make = tensor

    def _tensor(self) -> Source:
        return self._make()


def _source(value: object) -> Source:
    return value if isinstance(value, Source) else Source(repr(value))


def _infix(left: Source, sign: str, right: object, binds: int) -> Source:
    other = _source(right)
    if isinstance(left, Number) and isinstance(other, Number):
        left = left._tensor()  # Python's own arithmetic raises where a tensor becomes inf
    return Source(f"{left._guarded(binds)} {sign} {other._guarded(binds + 1)}", binds)


#: What a local name of a Python file should not be called.
PYTHON = (*keyword.kwlist, *dir(builtins))


class Names:
    """Local names: each given once, none of them of `taken` or a word of the language."""

    def __init__(self, taken: Iterable[str], words: Iterable[str] = PYTHON) -> None:
        self._words = {*taken, *words}  # for membership only, as below
        self._taken = set(self._words)

    def free(self, name: str) -> bool:
        """Would `give` return the name itself?"""
        return name not in self._taken

    def give(self, wanted: str) -> str:
        """`wanted` when it is free, else the nearest name that is."""
        # Two leading underscores would be mangled inside a class.
        wanted = f"_{wanted.lstrip('_')}" if wanted.startswith("__") else wanted
        name, count = f"{wanted}_" if wanted in self._words else wanted, 1
        while name in self._taken:
            count += 1
            name = f"{wanted}_{count}"
        self._taken.add(name)
        return name


def attribute(name: str) -> str:
    """`self.NAME` as an expression, also where Python cannot say that or would mangle the name."""
    if keyword.iskeyword(name) or name.startswith("__"):
        return f'getattr(self, "{name}")'
    return f"self.{name}"


def camel(name: str) -> str:
    """`gru_reset_after` as the name of a class, GruResetAfter."""
    words = "".join(word[:1].upper() + word[1:] for word in name.split("_"))
    if not words or words[0].isdigit():
        words = f"Cell{words}"
    return f"{words}Layer" if keyword.iskeyword(words) or hasattr(builtins, words) else words


def printable(line: str) -> str:
    """Any line of text for a comment: what could end the line, or hide its end, becomes '?'."""
    return "".join(c if c.isprintable() else "?" for c in line)


def comment(line: str) -> str:
    """Any line of text as a comment of Python."""
    return f"# {printable(line)}".rstrip()


def wrapped(opening: str, items: Sequence[str], closing: str) -> list[str]:
    """`opening`, items and `closing` on one line if they fit, else an item a line."""
    line = f"{opening}{', '.join(items)}{closing}"
    if len(line) <= COLUMNS - INDENT:
        return [line]
    return [opening, *(f"    {item}," for item in items), closing]


def assignment(targets: Sequence[str], value: str) -> list[str]:
    """`a, b = value`, the targets in parentheses over several lines where they are too long."""
    line = f"{', '.join(targets)} = {value}"
    if len(line) <= COLUMNS - INDENT or len(targets) == 1:
        return [line]
    return ["(", *(f"    {target}," for target in targets), f") = {value}"]
