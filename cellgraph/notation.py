"""The notation of cells: text to graph. Recursive descent; nothing is ever evaluated as Python.

    cell   := 'cell' NAME '(' 'x' (',' NAME (':' NAME)?)* ')' ('->' NAME)?  (line | repeat)*
    line   := 'const' NAME '=' '-'? NUMBER (',' …)* | ('scalar' | 'skew') NAME (',' NAME)*
              | 'init' NAME '=' init | NAME "'"? '=' sum
    repeat := 'repeat' NAME 'in' index '..' index, then its lines, indented deeper
    init   := number | 'identity' '(' number ')'      number := '-'? (NUMBER | NAME of a constant)
    sum    := product (('+' | '-') product)*          product := unary (('*' | '/') unary)*
    unary  := '-' unary | NAME '@' unary | atom       atom := NUMBER | NAME "'"? | FUNCTION '(' sum,
    … ')' | '(' sum ')'

`@` binds tighter than `*`, so that `z * U @ h` reads as in the papers. Every NAME may be
`NAME[index]`, which is the name `NAME_3` when the index is 3; indices and repeats are `repeat.py`.
`skew W` says of a matrix that the cell multiplies with W - W^T, W being what is stored and learned.
A constant is a number with a name and a default, which the caller of `parse` may override; it is
declared before it is read. Neither constants nor repeats are left in the graph. The other direction
is `printing.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from cellgraph import repeat
from cellgraph.errors import CellError, closest
from cellgraph.graph import (
    CONST,
    INPUT,
    MATMUL,
    PARAM,
    RESERVED,
    STATE,
    CellGraph,
    Init,
    Node,
    finite,
)
from cellgraph.ops import FUNCTIONS, INFIX
from cellgraph.tokens import Cursor, Token, code
from cellgraph.widths import WidthError, build

MAX_TEXT = (
    200_000  # characters; the largest cell of the literature (RHN of depth 10) has under 2,000
)
MAX_DEPTH = 100  # nested parentheses; each costs five frames of Python's stack


def parse(text: str, constants: Mapping[str, float] | None = None) -> CellGraph:
    """Read one cell. `constants` overrides defaults that the text declares: `{"beta": 2.0}`. Raises
    `CellError` with line, caret and what was expected."""
    return read(text, constants)[0]


def read(
    text: str, constants: Mapping[str, float] | None = None
) -> tuple[CellGraph, dict[str, float]]:
    """The cell that `parse` reads, and the constants that its text declares, with their defaults.
    Raises `CellError`."""
    if not isinstance(text, str):
        raise CellError(f"a cell is text, got {type(text).__name__}")
    if len(text) > MAX_TEXT:
        raise CellError(
            f"the text of the cell has {len(text)} characters, expected at most {MAX_TEXT}"
        )
    parser = _Parser(text, _overrides(constants))
    return parser.cell(), parser.defaults


def _overrides(constants: object) -> dict[str, float]:
    if constants is None:
        return {}
    if not isinstance(constants, Mapping):
        kind = type(constants).__name__
        raise CellError(f"constants of type {kind}, expected a mapping such as {{'beta': 2.0}}")
    checked: dict[str, float] = {}
    for name, value in constants.items():
        try:
            checked[name] = finite(value)
        except CellError as error:
            raise CellError(f"constant {name}: {error}") from None
    return checked


class _Parser(Cursor):
    def __init__(self, text: str, overrides: Mapping[str, float]) -> None:
        super().__init__()
        self.lines = text.splitlines()
        self.depth = 0
        self.states: dict[str, str] = {}  # name -> width
        self.next: dict[str, Node] = {}
        self.values: dict[str, Node] = {}  # assigned names, in the order of the text
        self.params: dict[str, Token] = {}  # where each parameter was first read
        self.scalars: dict[str, Token] = {}
        self.skews: dict[str, Token] = {}
        self.inits: dict[str, tuple[Init, Token]] = {}
        self.where: dict[Node, Token] = {}
        self.overrides = overrides
        self.defaults: dict[str, float] = {}  # what the text says of its constants
        self.constants: dict[str, float] = {}  # what they are, and the index inside a repeat
        self.indices: dict[str, None] = {}  # names that are or were an index
        self.indexed: dict[str, str] = {}  # base of assigned `base[index]` -> the first such name

    # -- names

    def fresh(self, token: Token, what: str) -> str:
        """A name that may still be given to something new."""
        name = token.text.rstrip("'")
        if name in RESERVED or name in FUNCTIONS:
            raise token.error(f"{name} is a word of the notation, expected another name for {what}")
        if name in self.constants or name in self.indices:
            kind = "an index" if name in self.indices else "a constant"
            raise token.error(f"{name} is {kind}, expected another name for {what}")
        return name

    def claim(self, token: Token, what: str) -> str:
        """A name for a number, which means nothing else in the whole cell."""
        name = self.fresh(token, what)
        taken = {
            "a state": self.states,
            "a width": ("H", "X", *self.states.values()),
            "a value": self.values,
            "a parameter": (*self.scalars, *self.skews),
        }
        for kind, names in taken.items():
            if name in names:
                raise token.error(f"{name} is {kind}, expected another name for {what}")
        if name in self.params:
            raise token.error(
                f"{name} was read on line {self.params[name].line}, "
                f"expected its line above that, or another name for {what}"
            )
        return name

    def index(self, token: Token) -> str:
        """The name of the index of a repeat; one repeat after another may use it."""
        if token.text not in self.indices:
            self.indices[self.claim(token, "an index")] = None
        return token.text

    # -- lines

    def cell(self) -> CellGraph:
        header: Token | None = None
        arrow: Token | None = None
        length = 0
        for tokens in repeat.rows(self.lines, self.constants, self.index):
            self.tokens, self.position = tokens, 0
            length += len(self.token.source)
            if length > MAX_TEXT:
                raise self.token.error(
                    f"more than {MAX_TEXT} characters with all repetitions, expected fewer"
                )
            if header is None:
                header, arrow = self.header()
            else:
                self.line()
            self.end()
        if header is None:
            raise CellError("no cell in the text, expected a line like: cell NAME(x, h)")
        for state in self.states:
            if state not in self.next:
                raise header.error(f"state {state} has no next value, expected a line {state}' = …")
        for name in self.overrides:
            if name not in self.defaults:
                known = f"one of {', '.join(self.defaults)}" if self.defaults else "none"
                guess = closest(str(name), self.defaults)
                raise CellError(
                    f"cell {header.text} has no constant {name}{guess}, expected {known}"
                )
        return self.finish(header, arrow)

    def header(self) -> tuple[Token, Token | None]:
        if self.token.text != "cell":
            raise self.token.error(
                f"found {self.token.text!r}, expected a header like: cell NAME(x, h)"
            )
        self.advance()
        header = self.name("the name of the cell")
        self.expect("(")
        if self.token.text != "x":
            raise self.token.error(f"found {self.token.text!r}, expected the input x")
        self.advance()
        while self.accept(","):
            token = self.name("the name of a state")
            state = self.fresh(token, "a state")
            if state in self.states:
                raise token.error(f"state {state} stands twice in the header, expected once")
            self.states[state] = self.name("the name of a width").text if self.accept(":") else "H"
            if self.states[state] == "X":
                raise token.error("X is the width of the input, expected another name for a width")
        self.expect(")")
        if not self.states:
            raise header.error(f"cell {header.text} has no state, expected at least one after x")
        arrow = self.name("the name of the output", prime=True) if self.accept("->") else None
        return header, arrow

    def line(self) -> None:
        first = self.name("a name to assign", prime=True)
        if first.text == "const" and self.token.text != "=":
            self.const()
            while self.accept(","):
                self.const()
        elif first.text in ("scalar", "skew") and self.token.kind == "name":
            declared = self.scalars if first.text == "scalar" else self.skews
            self.declaration(declared)
            while self.accept(","):
                self.declaration(declared)
        elif first.text == "init" and self.token.kind == "name":
            token = self.name("the name of a parameter")
            if token.text in self.inits:
                raise token.error(f"init {token.text} stands twice, expected once")
            self.expect("=")
            self.inits[token.text] = (self.init(), token)
        elif first.text == "cell" and self.token.kind == "name":
            raise first.error("a second cell starts here, expected one cell in a text")
        else:
            self.assignment(first)

    def declaration(self, names: dict[str, Token]) -> None:
        token = self.name("the name of a parameter")
        names[self.fresh(token, "a parameter")] = token

    def const(self) -> None:
        token = self.name("the name of a constant")
        if token.text in self.defaults:
            raise token.error(f"constant {token.text} stands twice, expected once")
        name = self.claim(token, "a constant")
        self.expect("=")
        sign = -1.0 if self.accept("-") else 1.0
        if self.token.kind != "number":
            raise self.token.error(f"found {self.token.text!r}, expected a number")
        self.defaults[name] = sign * self.number()
        self.constants[name] = self.overrides.get(name, self.defaults[name])

    def init(self) -> Init:
        token = self.token
        identity = token.text == "identity"
        if identity:
            self.advance()
            self.expect("(")
        sign = -1.0 if self.accept("-") else 1.0
        if not self.at_number():
            raise self.token.error(
                f"found {self.token.text!r}, expected a number or identity(NUMBER)"
            )
        value = sign * self.number()
        if identity:
            self.expect(")")
        return Init("identity" if identity else "constant", value)

    def assignment(self, first: Token) -> None:
        name = self.fresh(first, "a value")
        self.expect("=")
        if first.base:
            self.indexed.setdefault(first.base, name)
        if first.text.endswith("'"):
            if name not in self.states:
                raise first.error(
                    f"{name} is not a state, "
                    f"expected one of {', '.join(self.states)}{closest(name, self.states)}"
                )
            if name in self.next:
                raise first.error(f"{name}' is assigned twice, expected exactly once")
            self.next[name] = self.sum()
            self.values[f"{name}'"] = self.next[name]
            return
        if name in self.states:
            raise first.error(
                f"{name} is the previous value of a state, expected {name}' on the left"
            )
        if name in self.values:
            raise first.error(f"{name} is assigned twice, expected exactly once")
        node = self.sum()
        if name in self.params:
            raise first.error(
                f"{name} was read on line {self.params[name].line}, "
                "expected names assigned before they are used"
            )
        self.values[name] = node

    # -- expressions

    def sum(self) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.token.error(f"nested deeper than {MAX_DEPTH}, expected fewer parentheses")
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
        pending: list[tuple[Token, Node | None]] = []
        while True:
            token = self.token
            if token.text == "-":
                self.advance()
                if self.at_number():
                    node = self.put(Node(CONST, (), -self.number()), token)
                    break
                pending.append((token, None))
                continue
            node = self.atom()
            if self.token.text != "@":
                break
            sign = self.advance()
            if node.op != PARAM:
                raise token.error("left of @ stands a value, expected the name of a matrix")
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
        if self.at_number():
            return self.put(Node(CONST, (), self.number()), token)
        if token.kind == "name":
            self.advance()
            if self.token.text == "(":
                return self.call(token)
            return self.put(self.read(token), token)
        if self.accept("("):
            node = self.sum()
            self.expect(")")
            return node
        raise token.error(f"found {token.text!r}, expected a name, a number or (")

    def at_number(self) -> bool:
        return self.token.kind == "number" or self.token.text in self.constants

    def number(self) -> float:
        """A number, or what a constant stands for."""
        token = self.advance()
        try:
            return finite(float(self.constants.get(token.text, token.text)))
        except CellError as error:
            raise token.error(str(error)) from None

    def call(self, token: Token) -> Node:
        op = FUNCTIONS.get(token.text)
        if op is None:
            raise token.error(
                f"unknown function {token.text!r}{closest(token.text, FUNCTIONS)}, expected one of "
                f"{' '.join(FUNCTIONS)}"
            )
        self.expect("(")
        args = [self.sum()]
        while self.accept(","):
            args.append(self.sum())
        self.expect(")")
        if len(args) != op.arity:
            raise token.error(f"{op.name} has {len(args)} arguments, expected {op.arity}")
        return self.put(Node(op.name, tuple(args)), token)

    def read(self, token: Token) -> Node:
        name = token.text
        if name in self.values:
            return self.values[name]
        if name.endswith("'"):
            if name[:-1] in self.states:
                raise token.error(f"{name} is read before it is assigned, expected its line above")
            raise token.error(
                f"{name[:-1]} is not a state, expected one of {', '.join(self.states)}"
                f"{closest(name[:-1], self.states)}"
            )
        if name == "x":
            return Node(INPUT, (), name)
        if name in self.states:
            return Node(STATE, (), name)
        if name in FUNCTIONS or name in RESERVED:
            raise token.error(f"{name} is a word of the notation, expected a value")
        if name in self.indices:
            raise token.error(f"{name} is the index of a repeat, expected it inside that only")
        self.params.setdefault(name, token)
        return Node(PARAM, (), name)

    def put(self, node: Node, token: Token) -> Node:
        self.where.setdefault(node, token)
        return node

    # -- the whole

    def doc(self) -> str:
        """The comment above the header, or what else stands in comments there."""
        above = itertools.takewhile(lambda line: not code(line), self.lines)
        comments = [line.strip() for line in above]
        return "\n".join(line[1:].strip() for line in comments if line.startswith("#")).strip()

    def output(self, arrow: Token | None) -> Node:
        if arrow is None:
            return next(iter(self.next[s] for s in self.states))
        name = arrow.text.rstrip("'")
        if name in self.states:
            return self.next[name]
        if arrow.text in self.values:
            return self.values[arrow.text]
        known = [*self.states, *self.values]
        raise arrow.error(
            f"the output {name} is never assigned{closest(name, known)}, "
            "expected a state or an assigned name"
        )

    def finish(self, header: Token, arrow: Token | None) -> CellGraph:
        declared = [*self.scalars.items(), *self.skews.items()]
        declared += [(name, token) for name, (_, token) in self.inits.items()]
        for name, token in declared:
            if name not in self.params:
                raise token.error(
                    f"{name} is not a parameter of the cell{closest(name, self.params)}, "
                    f"expected one of {', '.join(self.params) or 'none'}"
                )
        for name, token in self.params.items():
            if token.base and token.base in self.indexed:  # mostly an index that is one off
                raise token.error(
                    f"{name} is never assigned, but {self.indexed[token.base]} is, "
                    "expected the index of one that is"
                )
        output = self.output(arrow)
        try:
            return build(
                header.text,
                [(s, width, self.next[s]) for s, width in self.states.items()],
                output,
                scalars=self.scalars,
                skews=self.skews,
                inits={name: init for name, (init, _) in self.inits.items()},
                names=self.values.items(),
                doc=self.doc(),
            )
        except WidthError as error:
            raise self.where.get(error.node, header).error(error.message) from None
