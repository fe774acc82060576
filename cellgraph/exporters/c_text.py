"""C99 as text: identifiers that are free, comments that stay comments, numbers, and the ops.

Nothing here knows of cells. An op is written from the C column of the op table: what the table
calls infix stands between its operands, what is one function is called, and every other op becomes
a small function of its own, so that an operand which the column names twice is computed once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from cellgraph.exporters import c_math
from cellgraph.exporters.source import Names
from cellgraph.ops import ATOM, OPS, UNARY, Op

COLUMNS = 100

#: What an identifier must not be: words of C99, C11, C23 and C++ (which may include the
#: declarations), and macros of <math.h>, <stdint.h> and of compilers in their GNU modes.
_WORDS = frozenset(
    word
    for line in (
        "auto break case char const continue default do double else enum extern float for goto",
        "if inline int long register restrict return short signed sizeof static struct switch",
        "typedef union unsigned void volatile while alignas alignof bool constexpr false",
        "nullptr static_assert thread_local true typeof typeof_unqual asm fortran near far and",
        "and_eq bitand bitor catch char8_t char16_t char32_t class co_await co_return co_yield",
        "compl concept const_cast consteval constinit decltype delete dynamic_cast explicit",
        "export friend import module mutable namespace new noexcept not not_eq operator or",
        "or_eq private protected public reinterpret_cast requires static_cast template this",
        "throw try typeid typename using virtual wchar_t xor xor_eq NAN INFINITY HUGE MAXFLOAT",
        "DOMAIN SING OVERFLOW UNDERFLOW PLOSS TLOSS X_TLOSS NULL EOF math_errhandling signgam",
        "errno main assert linux unix i386 i686 arm mips sparc sun vax pixel vector powerpc",
        "hpux sgi",
    )
    for word in line.split()
)
_MACRO = re.compile(r"(FP|MATH|M|HUGE|U?INT\w*|SIZE|PTRDIFF|WCHAR|WINT|SIG)_[A-Z0-9_]+")
#: C99 tells internal identifiers apart by 63 characters, external ones by 31.
LONGEST_NAME = 48

_NUMBER = re.compile(r"(?<![\w{.])\d+(?:\.\d+)?(?:[eE][-+]?\d+)?(?![\w}])")
_CALL = re.compile(r"\b(?!select\b)([a-z]\w*)\(")
_ONE_CALL = re.compile(r"([a-z]\w*)\(\{0\}\)")


class Identifiers(Names):
    """Names for C: each given once; none is a word, a macro, reserved or too long."""

    def __init__(self, taken: Iterable[str] = ()) -> None:
        super().__init__(taken, _WORDS)

    def give(self, wanted: str) -> str:
        """`wanted` when it is free, else a name near to it."""
        return super().give(plain(wanted))


def plain(name: str) -> str:
    """A name of the notation without what C reserves: underscores in front, names of macros."""
    name = name.strip("_")[:LONGEST_NAME] or "v"
    return f"v{name}" if name[0].isdigit() or _MACRO.fullmatch(name) else name


def comment(lines: Iterable[str]) -> list[str]:
    """Any text as one block comment: nothing in it can end it, or begin another."""
    shown = ["".join(c if c.isprintable() else "?" for c in line) for line in lines]
    for sign, harmless in (("*/", "* /"), ("/*", "/ *"), ("??", "? ?")):  # ??/ is a backslash
        while any(sign in line for line in shown):
            shown = [line.replace(sign, harmless) for line in shown]
    return ["/*", *(f" * {line}".rstrip() for line in shown), " */"]


def number(value: float) -> str:
    """A float literal: the shortest that reads back as the same float32."""
    with np.errstate(over="ignore"):  # to infinity, as torch rounds
        single = np.float32(value)
    if np.isnan(single):
        return "NAN"
    if np.isinf(single):
        return "INFINITY" if single > 0 else "-INFINITY"
    return f"{single!s}f"


def numbers(values: np.ndarray[tuple[int], np.dtype[np.float32]]) -> list[str]:
    """Float literals for an array."""
    if np.isfinite(values).all():
        return [f"{text}f" for text in values.astype(str)]
    return [number(float(value)) for value in values]


def table(opening: str, items: Sequence[str]) -> list[str]:
    """`opening {items};`, over as many lines as it takes."""
    lines, line = [f"{opening} {{"], "   "
    for item in items:
        if len(line) + len(item) + 2 > COLUMNS:
            lines.append(line)
            line = "   "
        line += f" {item},"
    return [*lines, line, "};"]


Expression = tuple[str, int]  #: text, and how tightly it binds


def guarded(value: Expression, least: int) -> str:
    """An expression in a place that wants one that binds so tightly."""
    text, binds = value
    return text if binds >= least else f"({text})"


class Functions:
    """The functions that ops call, each defined when it is first wanted."""

    def __init__(self, names: Identifiers) -> None:
        # All of them before any name of the user's: a local one would hide a function.
        calls = (_function(word) for op in OPS.values() for word in _CALL.findall(op.c))
        for name in dict.fromkeys([*c_math.NAMES, *calls]):
            names.give(name)
        self._names = {
            op.name: _function(found[1])
            if (found := _ONE_CALL.fullmatch(op.c))
            else names.give(op.name)
            for op in OPS.values()
            if op.infix is None
        }
        self._words: dict[str, None] = {}
        self._ops: dict[str, None] = {}

    def apply(self, op: Op, args: Sequence[Expression]) -> Expression:
        """The op of these operands."""
        if op.infix is not None and op.arity == 1:
            return f"{op.infix}{guarded(args[0], op.binds + 1)}", op.binds  # no `--a`
        if op.infix is not None:
            left, right = guarded(args[0], op.binds), guarded(args[1], op.binds + 1)
            return f"{left} {op.infix} {right}", op.binds
        self._words |= dict.fromkeys(word for word in _CALL.findall(op.c) if word in c_math.OWN)
        if not _ONE_CALL.fullmatch(op.c):
            self._ops[op.name] = None
        return f"{self._names[op.name]}({', '.join(text for text, _ in args)})", ATOM

    @property
    def bits(self) -> bool:
        """Do they need <stdint.h>?"""
        return bool(self._words)

    def definitions(self) -> list[str]:
        """Of all functions that were wanted and are not in libm."""
        texts = [c_math.BITS] if self._words else []
        texts += [text for word, (_, text) in c_math.OWN.items() if word in self._words]
        lines = [line for text in texts for line in [*text.splitlines(), ""]]
        for name in self._ops:
            arguments = ("a", "b")[: OPS[name].arity]
            lines += [
                f"static float {self._names[name]}({', '.join(f'float {a}' for a in arguments)})",
                "{",
                f"    return {_body(OPS[name].c, arguments)};",
                "}",
                "",
            ]
        return lines


def _function(word: str) -> str:
    """The function that a word of the C column calls: of our own, or of libm for float."""
    return c_math.OWN[word][0] if word in c_math.OWN else f"{word}f"


def _body(column: str, names: Sequence[str]) -> str:
    """A C column as an expression of float over plain names."""
    column = _NUMBER.sub(lambda m: number(float(m[0])), column.replace(" | ", " || "))
    text = _ternary(_CALL.sub(lambda m: f"{_function(m[1])}(", column).format(*names))
    return text[1:-1] if text.startswith("(") and _closing(text, 0) == len(text) - 1 else text


def _ternary(text: str) -> str:
    """`select(condition, yes, no)` as (condition ? yes : no), inside out."""
    at = text.rfind("select(")
    while at >= 0:
        begin, end = at + len("select"), _closing(text, at + len("select"))
        condition, yes, no = _arguments(text[begin + 1 : end])
        text = f"{text[:at]}({condition} ? {yes} : {no}){text[end + 1 :]}"
        at = text.rfind("select(")
    return text


def _closing(text: str, at: int) -> int:
    """Where the bracket that opens at `at` closes."""
    depth = 0
    for end in range(at, len(text)):
        depth += {"(": 1, ")": -1}.get(text[end], 0)
        if depth == 0:
            return end
    raise ValueError(f"a bracket of {text!r} stays open")


def _arguments(text: str) -> list[str]:
    """What stands between the commas that are in no brackets."""
    parts, depth = [""], 0
    for sign in text:
        depth += {"(": 1, ")": -1}.get(sign, 0)
        if sign == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    return [part.strip() for part in parts]


def signed(text: str) -> Expression:
    """A number as an expression."""
    return text, UNARY if text.startswith("-") else ATOM


def size_sum(count: Mapping[str, int]) -> str:
    """A sum of sizes: `2 * H + P`."""
    return " + ".join(size if n == 1 else f"{n} * {size}" for size, n in count.items()) or "0"
