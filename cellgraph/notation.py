"""The notation of cells: text to graph. Recursive descent; nothing is ever evaluated as Python.

    cell   := 'cell' NAME '(' 'x' (',' NAME (':' NAME)?)* ')' ('->' NAME)?  line*
    line   := 'scalar' NAME (',' NAME)* | 'init' NAME '=' init | NAME "'"? '=' sum
    sum    := product (('+' | '-') product)*          product := unary (('*' | '/') unary)*
    unary  := '-' unary | NAME '@' unary | atom       atom := NUMBER | NAME "'"? | FUNCTION '(' sum,
    … ')' | '(' sum ')'

`@` binds tighter than `*`, so that `z * U @ h` reads as in the papers. The other direction is
`printing.py`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from cellgraph.errors import CellError
from cellgraph.graph import (
    CONST,
    INPUT,
    LONGEST_NAME,
    MATMUL,
    PARAM,
    RESERVED,
    STATE,
    CellGraph,
    Init,
    Node,
)
from cellgraph.ops import FUNCTIONS, INFIX
from cellgraph.widths import WidthError, build

MAX_TEXT = (
    200_000  # characters; the largest cell of the literature (RHN of depth 10) has under 2,000
)
MAX_DEPTH = 100  # nested parentheses; each costs five frames of Python's stack

_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)|(?P<name>[A-Za-z_][A-Za-z0-9_]*'?)"
    r"|(?P<sign>->|[-+*/@(),=:]))",
    re.ASCII,
)


def parse(text: str) -> CellGraph:
    """Read one cell. Raises `CellError` with line, caret and what was expected."""
    if not isinstance(text, str):
        raise CellError(f"a cell is text, got {type(text).__name__}")
    if len(text) > MAX_TEXT:
        raise CellError(
            f"the text of the cell has {len(text)} characters, expected at most {MAX_TEXT}"
        )
    return _Parser(text).cell()


def closest(word: str, known: Iterable[str]) -> str:
    """' (did you mean …?)' when something similar is known, else ''."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str  # number, name, sign, end
    text: str
    line: int
    column: int


class _Parser:
    def __init__(self, text: str) -> None:
        self.lines = text.splitlines()
        self.doc: list[str] = []
        self.tokens: list[_Token] = []
        self.position = 0
        self.depth = 0
        self.states: dict[str, str] = {}  # name -> width
        self.next: dict[str, Node] = {}
        self.values: dict[str, Node] = {}  # assigned names, in the order of the text
        self.params: dict[str, _Token] = {}  # where each parameter was first read
        self.scalars: dict[str, _Token] = {}
        self.inits: dict[str, tuple[Init, _Token]] = {}
        self.where: dict[Node, _Token] = {}

    # -- tokens

    def error(self, message: str, token: _Token) -> CellError:
        source = self.lines[token.line - 1] if token.line <= len(self.lines) else ""
        return CellError(message, line=token.line, column=token.column, source=source)

    def tokenize(self, number: int) -> list[_Token]:
        """The tokens of one line, without its comment, closed by an `end` token."""
        line = self.lines[number - 1].split("#", 1)[0].rstrip()
        tokens, at = [], 0
        while at < len(line):
            match = _TOKEN.match(line, at)
            if match is None or match.lastgroup is None:
                at = len(line) - len(
                    line[at:].lstrip(" \t\f\v")
                )  # a no-break space is itself unexpected
                raise self.error(
                    f"unexpected character {line[at]!r}, "
                    "expected a name, a number or one of + - * / @ ( ) ,",
                    _Token("sign", line[at], number, at),
                )
            kind = match.lastgroup
            tokens.append(_Token(kind, match[kind], number, match.start(kind)))
            length = len(match[kind].rstrip("'"))
            if kind == "name" and length > LONGEST_NAME:
                raise self.error(
                    f"a name of {length} characters, expected at most {LONGEST_NAME}", tokens[-1]
                )
            at = match.end()
        return [*tokens, _Token("end", "end of line", number, len(line))]

    @property
    def token(self) -> _Token:
        return self.tokens[self.position]

    def advance(self) -> _Token:
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
            raise self.error(f"found {self.token.text!r}, expected {sign!r}", self.token)

    def name(self, what: str, *, prime: bool = False) -> _Token:
        token = self.token
        if token.kind != "name":
            raise self.error(f"found {token.text!r}, expected {what}", token)
        if token.text.endswith("'") and not prime:
            raise self.error(f"{token.text} has a prime, expected {what} without one", token)
        return self.advance()

    def fresh(self, token: _Token, what: str) -> str:
        """A name that may still be given to something new."""
        name = token.text.rstrip("'")
        if name in RESERVED or name in FUNCTIONS:
            raise self.error(
                f"{name} is a word of the notation, expected another name for {what}", token
            )
        return name

    def end(self) -> None:
        if self.token.kind != "end":
            raise self.error(
                f"found {self.token.text!r}, expected an operator or the end of the line",
                self.token,
            )

    # -- lines

    def cell(self) -> CellGraph:
        header: _Token | None = None
        arrow: _Token | None = None
        for number, line in enumerate(self.lines, start=1):
            stripped = line.strip()
            if stripped.startswith("#") and header is None:
                self.doc.append(stripped[1:].strip())
            self.tokens, self.position = self.tokenize(number), 0
            if self.token.kind == "end":
                continue
            if header is None:
                header, arrow = self.header()
            else:
                self.line()
            self.end()
        if header is None:
            raise CellError("no cell in the text, expected a line like: cell NAME(x, h)")
        for state in self.states:
            if state not in self.next:
                raise self.error(
                    f"state {state} has no next value, expected a line {state}' = …", header
                )
        return self.finish(header, arrow)

    def header(self) -> tuple[_Token, _Token | None]:
        if self.token.text != "cell":
            raise self.error(
                f"found {self.token.text!r}, expected a header like: cell NAME(x, h)", self.token
            )
        self.advance()
        header = self.name("the name of the cell")
        self.expect("(")
        if self.token.text != "x":
            raise self.error(f"found {self.token.text!r}, expected the input x", self.token)
        self.advance()
        while self.accept(","):
            token = self.name("the name of a state")
            state = self.fresh(token, "a state")
            if state in self.states:
                raise self.error(f"state {state} stands twice in the header, expected once", token)
            self.states[state] = self.name("the name of a width").text if self.accept(":") else "H"
            if self.states[state] == "X":
                raise self.error(
                    "X is the width of the input, expected another name for a width", token
                )
        self.expect(")")
        if not self.states:
            raise self.error(
                f"cell {header.text} has no state, expected at least one after x", header
            )
        arrow = self.name("the name of the output", prime=True) if self.accept("->") else None
        return header, arrow

    def line(self) -> None:
        first = self.name("a name to assign", prime=True)
        if first.text == "scalar" and self.token.kind == "name":
            token = self.name("the name of a parameter")
            self.scalars[self.fresh(token, "a parameter")] = token
            while self.accept(","):
                token = self.name("the name of a parameter")
                self.scalars[self.fresh(token, "a parameter")] = token
        elif first.text == "init" and self.token.kind == "name":
            token = self.name("the name of a parameter")
            if token.text in self.inits:
                raise self.error(f"init {token.text} stands twice, expected once", token)
            self.expect("=")
            self.inits[token.text] = (self.init(), token)
        elif first.text == "cell" and self.token.kind == "name":
            raise self.error("a second cell starts here, expected one cell in a text", first)
        else:
            self.assignment(first)

    def init(self) -> Init:
        token = self.token
        identity = token.text == "identity"
        if identity:
            self.advance()
            self.expect("(")
        sign = -1.0 if self.accept("-") else 1.0
        if self.token.kind != "number":
            raise self.error(
                f"found {self.token.text!r}, expected a number or identity(NUMBER)", self.token
            )
        value = sign * self.number().attr  # type: ignore[operator]  # a const node holds a float
        if identity:
            self.expect(")")
        return Init("identity" if identity else "constant", value)

    def assignment(self, first: _Token) -> None:
        name = self.fresh(first, "a value")
        self.expect("=")
        if first.text.endswith("'"):
            if name not in self.states:
                raise self.error(
                    f"{name} is not a state, "
                    f"expected one of {', '.join(self.states)}{closest(name, self.states)}",
                    first,
                )
            if name in self.next:
                raise self.error(f"{name}' is assigned twice, expected exactly once", first)
            self.next[name] = self.sum()
            self.values[f"{name}'"] = self.next[name]
            return
        if name in self.states:
            raise self.error(
                f"{name} is the previous value of a state, expected {name}' on the left", first
            )
        if name in self.values:
            raise self.error(f"{name} is assigned twice, expected exactly once", first)
        node = self.sum()
        if name in self.params:
            raise self.error(
                f"{name} was read on line {self.params[name].line}, "
                "expected names assigned before they are used",
                first,
            )
        self.values[name] = node

    # -- expressions

    def sum(self) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.error(
                f"nested deeper than {MAX_DEPTH}, expected fewer parentheses", self.token
            )
        node = self.product()
        while self.token.text in ("+", "-"):
            sign = self.advance()
            node = self.put(Node(INFIX[sign.text, 2].name, (node, self.product())), sign)
        self.depth -= 1
        return node

    def product(self) -> Node:
        node = self.unary()
        while self.token.text in ("*", "/"):
            sign = self.advance()
            node = self.put(Node(INFIX[sign.text, 2].name, (node, self.unary())), sign)
        return node

    def unary(self) -> Node:
        """A chain of minus signs and matrices is read by a loop, so that its length costs no
        stack."""
        pending: list[tuple[_Token, Node | None]] = []
        while True:
            token = self.token
            if token.text == "-":
                self.advance()
                if self.token.kind == "number":
                    node = self.put(Node(CONST, (), -self.number().attr), token)  # type: ignore[operator]
                    break
                pending.append((token, None))
                continue
            node = self.atom()
            if self.token.text != "@":
                break
            sign = self.advance()
            if node.op != PARAM:
                raise self.error("left of @ stands a value, expected the name of a matrix", token)
            pending.append((sign, node))
        for sign, matrix in reversed(pending):
            made = (
                Node(INFIX["-", 1].name, (node,))
                if matrix is None
                else Node(MATMUL, (matrix, node))
            )
            node = self.put(made, sign)
        return node

    def atom(self) -> Node:
        token = self.token
        if token.kind == "number":
            return self.number()
        if token.kind == "name":
            self.advance()
            if self.token.text == "(":
                return self.call(token)
            return self.put(self.read(token), token)
        if self.accept("("):
            node = self.sum()
            self.expect(")")
            return node
        raise self.error(f"found {token.text!r}, expected a name, a number or (", token)

    def number(self) -> Node:
        token = self.advance()
        try:
            return self.put(Node(CONST, (), float(token.text)), token)
        except CellError as error:
            raise self.error(str(error), token) from None

    def call(self, token: _Token) -> Node:
        op = FUNCTIONS.get(token.text)
        if op is None:
            raise self.error(
                f"unknown function {token.text!r}{closest(token.text, FUNCTIONS)}, expected one of "
                f"{' '.join(FUNCTIONS)}",
                token,
            )
        self.expect("(")
        args = [self.sum()]
        while self.accept(","):
            args.append(self.sum())
        self.expect(")")
        if len(args) != op.arity:
            raise self.error(f"{op.name} has {len(args)} arguments, expected {op.arity}", token)
        return self.put(Node(op.name, tuple(args)), token)

    def read(self, token: _Token) -> Node:
        name = token.text
        if name in self.values:
            return self.values[name]
        if name.endswith("'"):
            if name[:-1] in self.states:
                raise self.error(
                    f"{name} is read before it is assigned, expected its line above", token
                )
            raise self.error(
                f"{name[:-1]} is not a state, expected one of {', '.join(self.states)}"
                f"{closest(name[:-1], self.states)}",
                token,
            )
        if name == "x":
            return Node(INPUT, (), name)
        if name in self.states:
            return Node(STATE, (), name)
        if name in FUNCTIONS or name in RESERVED:
            raise self.error(f"{name} is a word of the notation, expected a value", token)
        self.params.setdefault(name, token)
        return Node(PARAM, (), name)

    def put(self, node: Node, token: _Token) -> Node:
        self.where.setdefault(node, token)
        return node

    # -- the whole

    def output(self, arrow: _Token | None) -> Node:
        if arrow is None:
            return next(iter(self.next[s] for s in self.states))
        name = arrow.text.rstrip("'")
        if name in self.states:
            return self.next[name]
        if arrow.text in self.values:
            return self.values[arrow.text]
        known = [*self.states, *self.values]
        raise self.error(
            f"the output {name} is never assigned{closest(name, known)}, "
            "expected a state or an assigned name",
            arrow,
        )

    def finish(self, header: _Token, arrow: _Token | None) -> CellGraph:
        for name, token in [*self.scalars.items(), *((n, t) for n, (_, t) in self.inits.items())]:
            if name not in self.params:
                raise self.error(
                    f"{name} is not a parameter of the cell{closest(name, self.params)}, "
                    f"expected one of {', '.join(self.params) or 'none'}",
                    token,
                )
        output = self.output(arrow)
        try:
            return build(
                header.text,
                [(s, width, self.next[s]) for s, width in self.states.items()],
                output,
                scalars=self.scalars,
                inits={name: init for name, (init, _) in self.inits.items()},
                names=self.values.items(),
                doc="\n".join(self.doc).strip(),
            )
        except WidthError as error:
            raise self.error(error.message, self.where.get(error.node, header)) from None
