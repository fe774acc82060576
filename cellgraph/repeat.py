"""Indices and repeats: from the lines of a text to the rows of tokens that the parser reads.

    repeat l in 2..depth
        s[l] = tanh(U[l] @ s[l-1] + b[l])

reads its indented lines for l = 2, 3, … up to and with depth, as if they stood in the text so
often. `s[l-1]` is plainly the name `s_1` when l is 2; so is `s[1]`, inside a repeat or not. The
index itself is a number in its lines, as a constant is everywhere.

    index := term (('+' | '-') term)*          term := WHOLE | NAME of a constant or of an index

Nothing of this is left in the cell: `str(cell)` prints the unrolled equations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence

from cellgraph.errors import closest
from cellgraph.graph import format_number
from cellgraph.tokens import Cursor, Token, check_length, code, tokenize

MOST_REPETITIONS = 100
LARGEST_INDEX = 9999


def rows(
    lines: Sequence[str],
    constants: MutableMapping[str, float],
    claim: Callable[[Token], str],
) -> Iterator[list[Token]]:
    """The tokens of every line that says something, repeats unrolled and indices resolved.

    A generator, because the reader of its rows fills `constants` as it meets their lines; the index
    of a repeat is one of them while its lines are read. `claim` returns the name of an index, or
    raises when the name is taken. Raises `CellError`.
    """
    number, header = 0, True
    while number < len(lines):
        number += 1
        tokens = _resolved(tokenize(lines[number - 1], number), constants)
        if tokens[0].kind == "end":
            continue
        if header or not _begins(tokens, "repeat"):
            header = False
            yield tokens
            continue
        index, values = _range(tokens, constants)
        name = claim(index)
        body, number = _body(lines, tokens[0])
        for value in values:
            constants[name] = value
            # What is wrong in the first repetition is wrong in the text; later, it matters which.
            when = f"{name} = {value}" if value > values[0] else ""
            for at in body:
                yield _resolved(tokenize(lines[at - 1], at, when), constants)
            del constants[name]


def _begins(tokens: Sequence[Token], word: str) -> bool:
    """Is it a line of that kind? (`repeat = …` would be an assignment, which has its own error.)"""
    return tokens[0].text == word and tokens[1].text != "="


def _range(tokens: Sequence[Token], constants: Mapping[str, float]) -> tuple[Token, range]:
    """`repeat l in 2..depth`: the token of the index, and its values."""
    line = Cursor(tokens)
    line.advance()
    index = line.name("the name of an index, as in: repeat l in 1..5")
    if line.token.text != "in":
        raise line.token.error(f"found {line.token.text!r}, expected 'in'")
    line.advance()
    first = _index(line, constants)
    line.expect("..")
    end = line.token
    last = _index(line, constants)
    line.end("+ or - or the end of the line")
    if last < first - 1:
        raise end.error(
            f"a repeat from {first} to {last}, expected an end of at least {first - 1}, "
            "which repeats nothing"
        )
    if last - first >= MOST_REPETITIONS:
        raise end.error(f"{last - first + 1} repetitions, expected at most {MOST_REPETITIONS}")
    return index, range(first, last + 1)


def _body(lines: Sequence[str], repeat: Token) -> tuple[list[int], int]:
    """The numbers of the lines that a repeat holds, and of the last line before what follows it.

    They are indented deeper than the repeat, all of them alike; lines without code do not count.
    """
    outer = _indent(repeat.source)
    inner = ""
    body: list[int] = []
    last = repeat.line
    for number in range(repeat.line + 1, len(lines) + 1):
        source = lines[number - 1]
        if not code(source):
            continue
        indent = _indent(source)
        if indent == (inner or indent) and len(indent) > len(outer) and indent.startswith(outer):
            tokens = tokenize(source, number)
            if _begins(tokens, "repeat") or _begins(tokens, "const"):
                raise tokens[0].error(
                    f"a {tokens[0].text} line inside a repeat, "
                    "expected equations, scalar, skew and init lines only"
                )
            inner = indent
            body.append(number)
            last = number
        elif outer.startswith(indent):
            break
        else:
            first = tokenize(source, number)[0]
            if body:
                raise first.error(
                    f"indented unlike line {body[0]}, expected the same, "
                    f"or no more than the repeat in line {repeat.line}"
                )
            raise first.error(
                f"tabs and spaces unlike those of the repeat in line {repeat.line}, "
                "expected the same and more of them"
            )
    if not body:
        raise repeat.error("a repeat without lines, expected them below it, indented deeper")
    return body, last


def _indent(line: str) -> str:
    return line[: len(line) - len(line.lstrip(" \t"))]


def _resolved(tokens: list[Token], constants: Mapping[str, float]) -> list[Token]:
    """Every `name[index]` as the one name that it means."""
    if "[" not in tokens[0].source:
        return tokens
    line = Cursor(tokens)
    done: list[Token] = []
    while line.token.kind != "end":
        token = line.advance()
        if token.text == "[":
            raise token.error("found '[', expected one index, and a name before it")
        if token.kind == "name" and line.accept("["):
            token = _named(token, line, constants)
        done.append(token)
    return [*done, line.token]


def _named(token: Token, line: Cursor, constants: Mapping[str, float]) -> Token:
    """`name[index]`, read up to and with its bracket; `name[index]'` is the next value of a
    state."""
    if token.text.endswith("'"):
        raise token.error(f"{token.text} has a prime, expected it behind the index: name[…]'")
    value = _index(line, constants)
    if not 0 <= value <= LARGEST_INDEX:
        raise token.error(f"{token.text}[{value}], expected an index from 0 to {LARGEST_INDEX}")
    prime = "'" if line.accept("]'") else ""
    if not prime:
        line.expect("]")
    name = f"{token.text}_{value}"
    check_length(name, token)
    return Token(
        "name", name + prime, token.line, token.column, token.source, token.when, token.text
    )


def _index(line: Cursor, constants: Mapping[str, float]) -> int:
    total = _term(line, constants)
    while line.token.text in ("+", "-"):
        sign = 1 if line.advance().text == "+" else -1
        total += sign * _term(line, constants)
    return total


def _term(line: Cursor, constants: Mapping[str, float]) -> int:
    token = line.advance()
    if token.kind == "number" and token.text.isdigit():
        value = float(token.text)
    elif token.kind != "name":
        raise token.error(f"found {token.text!r}, expected a whole number or a constant")
    elif token.text not in constants:
        known = f", one of {', '.join(constants)}" if constants else ""
        raise token.error(
            f"{token.text} is no number here{closest(token.text, constants)}, "
            f"expected a whole number or a constant{known}"
        )
    else:
        value = constants[token.text]
    if abs(value) > LARGEST_INDEX or value != int(value):
        shown = token.text if token.kind == "number" else f"{token.text} = {format_number(value)}"
        raise token.error(f"{shown}, expected a whole number up to {LARGEST_INDEX}")
    return int(value)
