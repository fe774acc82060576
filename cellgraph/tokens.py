"""Text to tokens, one line at a time, and the cursor that all parts of the notation read them with.

A token knows its line and column, so it is what every error of the notation points at.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from cellgraph.errors import CellError
from cellgraph.graph import LONGEST_NAME

_TOKEN = re.compile(
    # `1..5` is a range: a point that another one follows ends no number.
    r"\s*(?:(?P<number>(?:\d+(?:\.(?!\.)\d*)?|\.\d+)(?:[eE][-+]?\d+)?)"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_]*'?)"
    r"|(?P<sign>->|\.\.|\]'|[-+*/@(),=:\[\]]))",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Token:
    """One word of a text. `when` names the repetition (`l = 3`) that it was unrolled in, and `base`
    is what stood before the brackets of `name[index]`; both are mostly empty."""

    kind: str  # number, name, sign, end
    text: str
    line: int  # from 1
    column: int  # from 0
    source: str  # the whole line
    when: str = ""
    base: str = ""

    def error(self, message: str) -> CellError:
        """What is wrong here, with the line and a caret below this token."""
        when = f" (at {self.when})" if self.when else ""
        return CellError(message + when, line=self.line, column=self.column, source=self.source)


def code(line: str) -> str:
    """A line without its comment."""
    return line.split("#", 1)[0].rstrip()


def tokenize(source: str, number: int, when: str = "") -> list[Token]:
    """The tokens of line `number` of a text, without its comment, closed by an `end` token. Raises
    `CellError`."""
    line = code(source)
    tokens: list[Token] = []
    at = 0
    while at < len(line):
        match = _TOKEN.match(line, at)
        if match is None or match.lastgroup is None:
            # A no-break space is itself unexpected.
            at = len(line) - len(line[at:].lstrip(" \t\f\v"))
            raise Token("sign", line[at], number, at, source, when).error(
                f"unexpected character {line[at]!r}, "
                "expected a name, a number or one of + - * / @ ( ) , [ ]"
            )
        kind = match.lastgroup
        tokens.append(Token(kind, match[kind], number, match.start(kind), source, when))
        if kind == "name":
            check_length(match[kind], tokens[-1])
        at = match.end()
    return [*tokens, Token("end", "end of line", number, len(line), source, when)]


def check_length(name: str, token: Token) -> None:
    length = len(name.rstrip("'"))
    if length > LONGEST_NAME:
        raise token.error(f"a name of {length} characters, expected at most {LONGEST_NAME}")


class Cursor:
    """A position in the tokens of one line, and what may be asked of the token there."""

    def __init__(self, tokens: Sequence[Token] = ()) -> None:
        self.tokens = tokens
        self.position = 0

    @property
    def token(self) -> Token:
        return self.tokens[self.position]

    def advance(self) -> Token:
        token = self.token
        self.position += token.kind != "end"
        return token

    def accept(self, sign: str) -> bool:
        if self.token.kind == "sign" and self.token.text == sign:
            self.position += 1
            return True
        return False

    def expect(self, sign: str) -> None:
        if not self.accept(sign):
            raise self.token.error(f"found {self.token.text!r}, expected {sign!r}")

    def name(self, what: str, *, prime: bool = False) -> Token:
        token = self.token
        if token.kind != "name":
            raise token.error(f"found {token.text!r}, expected {what}")
        if token.text.endswith("'") and not prime:
            raise token.error(f"{token.text} has a prime, expected {what} without one")
        return self.advance()

    def end(self, expected: str = "an operator or the end of the line") -> None:
        if self.token.kind != "end":
            raise self.token.error(f"found {self.token.text!r}, expected {expected}")
