"""The rules of the normal form one by one, and `simplify` on any cell."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import cellgraph as cg
from cellgraph.canonical import canonical, key, key_of, unambiguous
from cellgraph.graph import CellGraph
from cellgraph.interpret import unroll
from cellgraph.normal import Form, form_of, leave_form
from cellgraph.ops import OPS, Op
from cellgraph.rewrites import LONGEST
from cellgraph.rules import RULES, Rule
from tests.strategies import cells, sample

EQUATIONS = [(rule, equation) for rule in RULES for equation in rule.equations]


def around(expression: str) -> CellGraph:
    """A cell that puts out the expression (plus b, should it be a number)."""
    return cg.parse(
        f"cell rule(x, a, b, c) -> y\n y = b + sin(b) * ({expression})\n"
        " a' = tanh(x + a + b)\n b' = cos(x - b + 2 * c)\n c' = tanh(x + c - 3 * b)"
    )


def assert_same_values(ours: CellGraph, theirs: CellGraph, *, seed: int = 0) -> None:
    """Outputs over several steps and the states that both have, where the cells are finite."""
    at = sample(theirs, steps=4, seed=seed)
    outputs, last = unroll(theirs, at.params, at.x, at.state)
    start = {s.name: value for s, value in zip(theirs.states, at.state, strict=True)}
    end = {s.name: value for s, value in zip(theirs.states, last, strict=True)}
    mine, my_last = unroll(ours, at.params, at.x, [start[s.name] for s in ours.states])
    torch.testing.assert_close(mine, outputs, rtol=1e-9, atol=1e-9)
    for state, value in zip(ours.states, my_last, strict=True):
        torch.testing.assert_close(value, end[state.name], rtol=1e-9, atol=1e-9)


# -- the table -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "equation"), EQUATIONS, ids=[e for _, e in EQUATIONS])
def test_an_equation_of_the_table(rule: Rule, equation: str) -> None:
    left, right = (around(side) for side in equation.split(" = "))
    assert left != right
    fired = form_of(left)[0].fired + form_of(right)[0].fired
    assert fired[rule.name] > 0
    assert left.key() == right.key()
    for seed in range(3):
        for side in (left, cg.simplify(left)):
            at = sample(left, steps=4, seed=seed)
            start = dict(zip("abc", at.state, strict=True))
            ours, wanted = (
                unroll(cell, at.params, at.x, [start[s.name] for s in cell.states])[0]
                for cell in (side, right)
            )
            finite = ours.isfinite() & wanted.isfinite()
            assert bool(finite.any())
            torch.testing.assert_close(ours[finite], wanted[finite], rtol=1e-9, atol=1e-12)
    if rule.rewrites:
        lines = [str(cell).splitlines()[1] for cell in (left, right)]
        assert lines != [str(cg.simplify(cell)).splitlines()[1] for cell in (left, right)]


def test_names_of_rules_are_different() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES)
    assert all(rule.equations for rule in RULES)


UNEQUAL = [
    "a / a = 1",
    "a / (b / c) = a * c / b",
    "exp(log(a)) = a",
    "sqrt(a) * sqrt(a) = a",
    "max(a, b) = max(a, c)",
    "a - b = b - a",
    "a / b = b / a",
    "relu(-a) = -relu(a)",
    "sigmoid(-a) = -sigmoid(a)",
    "cos(-a) = -cos(a)",
    "step(-a) = 1 - step(a)",
    "abs(a * b) = a * b",
    "relu(a) = relu(abs(a))",
    "tanh(tanh(a)) = tanh(a)",
    "hard_sigmoid(hard_sigmoid(a)) = hard_sigmoid(a)",
    "square(a) = abs(a)",
    "log(exp(a) + 1) = a + 1",
    "W @ a + V @ a = 2 * (W @ a)",
    "p * a + q * a = 2 * (p * a)",
    "relu(a + b) = relu(a) + relu(b)",
    "0.1 * a = 0.2 * a",
]


@pytest.mark.parametrize("equation", UNEQUAL)
def test_what_is_no_rule(equation: str) -> None:
    left, right = (around(side) for side in equation.split(" = "))
    assert left.key() != right.key()


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_columns_that_rules_use(op: Op) -> None:
    """Each column against `eager`, and each that holds must be stated."""
    a = torch.cat([torch.linspace(-5, 5, 2000), torch.zeros(1)]).to(torch.float64)
    if op.arity == 2:
        assert op.idempotent == torch.equal(op.eager(torch, a, a), a)
        assert (op.symmetry, op.even, op.slopes, op.nonnegative) == (None, False, None, False)
        return
    f = op.eager(torch, a)
    turned = op.eager(torch, -a)
    finite = bool(f.isfinite().all())
    symmetric = finite and bool(((f + turned) - (f + turned)[0]).abs().max() < 1e-12)
    if op.signs is None:  # `neg` is a sum
        assert (op.symmetry is not None) == symmetric
    if op.symmetry is not None:
        torch.testing.assert_close(turned, op.symmetry - f, rtol=0, atol=1e-12)
    assert op.even == (finite and torch.equal(f, turned))
    above, below = a > 0, a < 0
    slopes = (f[above] / a[above], f[below] / a[below])
    kinked = finite and all(bool((s - s[0]).abs().max() < 1e-12) for s in slopes)
    if op.signs is None:
        assert (op.slopes is not None) == kinked
    if op.slopes is not None:
        for slope, found in zip(op.slopes, slopes, strict=True):
            torch.testing.assert_close(found, torch.full_like(found, slope))
    assert op.idempotent == (finite and torch.equal(op.eager(torch, f), f))
    assert op.nonnegative == bool((f[f.isfinite()] >= 0).all())


# -- what becomes of a cell ------------------------------------------------------------------------

SIMPLER = [
    ("tanh(W @ x + h - h + U @ h)", "tanh(W @ x + U @ h)"),
    ("tanh(x) + -(h * 1)", "tanh(x) - h"),
    ("-(tanh(x) - h)", "h - tanh(x)"),
    ("-h * -tanh(x)", "h * tanh(x)"),
    ("-(-(x * h))", "x * h"),
    ("x * h + h * x", "2 * (x * h)"),
    ("relu(relu(x)) * h + 0 * sin(h)", "relu(x) * h"),
    ("max(x * h, h * x) / 1", "x * h"),
    ("W @ (h * 0) + x * h", "x * h"),
    ("(x + h) - (h - x * h)", "x + x * h"),
    ("x + x + h", "2 * x + h"),
    ("2 * (3 * x) * h", "6 * x * h"),
    ("sigmoid(0) * x * h", "0.5 * x * h"),
    ("x * h + (sigmoid(-h) + sigmoid(h))", "x * h + 1"),
    ("sqrt(square(x)) * h", "abs(x) * h"),
    ("tanh(x) * (-h + -x)", "tanh(x) * -(h + x)"),
]


@pytest.mark.parametrize(("before", "after"), SIMPLER, ids=[b for b, _ in SIMPLER])
def test_simple_forms(before: str, after: str) -> None:
    cell, simple = (cg.parse(f"cell a(x, h)\n h' = {text}") for text in (before, after))
    assert cg.simplify(cell) == simple
    assert cg.simplify(simple) is simple
    assert cell.key() == simple.key() or cell.raw_x != simple.raw_x
    assert_same_values(simple, cell)


AS_WRITTEN = [
    "x * h + (W @ x + U @ h + b)",
    "b + (U @ h + W @ x)",
    "sigmoid(-h) * x + sigmoid(h) * h",
    "tanh(x - 3 * h) * h - 1",
    "tanh(b - (x - h)) * (2 * h)",
    "square(x) * h / 3",
    "W @ -h + x / 4",
    "silu(x) * h",
]


@pytest.mark.parametrize("text", AS_WRITTEN)
def test_what_no_rule_makes_better_stays_as_it_is_written(text: str) -> None:
    cell = cg.parse(f"cell a(x, h)\n h' = {text}")
    assert cg.simplify(cell) is cell


def test_names_survive() -> None:
    text = """
        # a comment
        cell a(x, h, c)
            f  = sigmoid(W_f @ x + U_f @ h + lost - lost)
            g  = tanh(W_g @ x)
            k  = g * 1
            dead = Q @ h
            c' = f * c + (1 - f) * k
            h' = f * tanh(c')
            init W_f = 0.5
            init lost = 2
    """
    simple = cg.simplify(cg.parse(text))
    assert [name for name, _ in simple.names] == ["f", "g", "k", "c'", "h'"]
    assert [p.name for p in simple.params] == ["W_f", "U_f", "W_g"]
    assert simple.doc == "a comment"
    assert "k" not in str(simple).replace("tanh", "")
    assert simple == cg.parse(str(simple))
    assert simple.params[0].init == cg.Init("constant", 0.5)


def test_states_that_die_go_and_those_that_are_left_have_an_order() -> None:
    body = "h' = tanh(c + W @ x)\n c' = c * d + x - 0 * e\n d' = sin(d + x)\n e' = cos(e + x)"
    orders = ["c, h, d, e", "e, d, c, h", "h, c, e, d"]
    simple = [cg.simplify(cg.parse(f"cell a(x, {s}) -> h\n {body}")) for s in orders]
    assert {tuple(s.name for s in cell.states) for cell in simple} == {
        tuple(s.name for s in simple[0].states)
    }
    assert sorted(s.name for s in simple[0].states) == ["c", "d", "h"]
    assert simple[0].states[0].name == "h"
    assert len({cell.key() for cell in simple}) == 1


def test_the_emitted_state_stays_though_nothing_reads_it() -> None:
    simple = cg.simplify(cg.parse("cell a(x, c, h) -> h\n h' = tanh(c) + h - h\n c' = c + x"))
    assert [s.name for s in simple.states] == ["h", "c"]


def test_states_that_nothing_reads_go_where_none_is_emitted() -> None:
    body = "y = W @ x + U @ m\n m' = tanh(y)\n h' = tanh(h - h)\n c' = h"
    cell = cg.parse(f"cell a(x, h, c, m) -> y\n {body}")
    assert cg.viable(cell)
    assert [s.name for s in cg.simplify(cell).states] == ["m"]
    head = "cell a(x, h, c, m) -> y\n y = W @ x\n m' = x"
    for body, kept in (("h' = h + x\n c' = h", ["h"]), ("h' = c + x\n c' = h", ["h", "c"])):
        without = cg.parse(f"{head}\n {body}")
        assert [s.name for s in cg.simplify(without).states] == kept
        assert cg.simplify(cg.simplify(without)) == cg.simplify(without)


@pytest.mark.parametrize(
    "text",
    [
        "cell a(x, h)\n h' = x - x",
        "cell a(x, h)\n h' = 0 * h + s\n scalar s",
        "cell a(x, h) -> y\n h' = tanh(h + x)\n y = h / 1 - h",
        "cell a(x, h, c)\n h' = tanh(h + c + x)\n c' = sigmoid(c - c)",
    ],
)
def test_a_state_that_comes_to_a_number(text: str) -> None:
    cell = cg.parse(text)
    with pytest.raises(cg.CellError, match="not a vector"):
        cg.simplify(cell)
    assert not cg.viable(cell)
    assert cell.key()


@pytest.mark.parametrize(
    "line",
    ["h' = tanh(W @ x) + h - h", "h' = tanh(U @ h) + 0 * x", "h' = tanh(W @ (x - x) + U @ h)"],
)
def test_viable_sees_the_simple_form(line: str) -> None:
    assert not cg.viable(cg.parse(f"cell a(x, h)\n {line}"))
    assert cg.viable(cg.parse(f"cell a(x, h)\n {line} + x * h"))


def test_a_matrix_times_the_same_number_everywhere() -> None:
    """Its operand comes to a number, which has no width: it is left as it is written."""
    cell = cg.parse("cell a(x, h)\n h' = tanh(W @ (h - h + 2) + U @ (h * 1) + x)")
    simple = cg.simplify(cell)
    assert simple == cg.parse("cell a(x, h)\n h' = tanh(W @ (h - h + 2) + U @ h + x)")
    assert_same_values(simple, cell)
    other = cg.parse("cell a(x, h)\n h' = tanh(W @ (h * 0 + 3) + U @ (h * 1) + x)")
    same = cg.parse("cell a(x, h)\n h' = tanh(W @ (x - x + 2) + U @ h + x)")
    assert same.key() == cell.key() != other.key()


def test_a_cell_that_no_longer_uses_raw_x_is_another_cell() -> None:
    cell = cg.parse("cell a(x, h)\n h' = tanh(W @ x + U @ h) + x - x")
    simple = cg.simplify(cell)
    assert (cell.raw_x, simple.raw_x) == ("H", None)
    assert cell.key() != simple.key()
    assert simple.key() == cg.load("tanh_rnn").key() or len(simple.params) == 2
    assert_same_values(simple, cell)


def test_a_removed_part_that_decides_on_a_width_keeps_the_cell_as_it_is() -> None:
    cell = cg.parse(
        "cell a(x, h, r: P)\n y = W @ x\n h' = tanh(U @ y + h + V @ (y - y + r))\n r' = x - r"
    )
    cell = cg.parse(str(cell).replace("x - r", "R @ x - r"))
    assert {p.name: p.rows for p in cell.params}["W"] == "P"
    assert cg.simplify(cell) is cell


def test_long_sums_are_kept_in_pieces() -> None:
    terms = [f"b{i}" for i in range(3 * LONGEST)]
    cell = cg.parse(f"cell a(x, h)\n h' = tanh(x + h + {' + '.join(terms)})")
    assert cg.simplify(cell) is cell
    assert max(map(len, form_of(cell)[0].args)) == LONGEST


def test_a_hostile_cell_does_not_grow() -> None:
    lines = ["s0 = x + h"]
    lines += [f"s{i} = tanh(s{i - 1} - h) + s{i - 1} + h - h" for i in range(1, 120)]
    cell = cg.parse("cell a(x, h)\n" + "\n".join([*lines, "h' = s119"]))
    simple = cg.simplify(cell)
    assert ops(simple) <= ops(cell)
    assert cg.simplify(simple) == simple


def test_numbers_that_leave_the_range_of_floats_are_not_folded() -> None:
    for text in ("1e300 * (1e300 * h) + x", "h / 1e-320 + x", "1e-200 * (1e-200 * h) + x",
                 "exp(1000) * h + x", "1 / 0 + x + h", "log(-1) * x + h"):  # fmt: skip
        cell = cg.parse(f"cell a(x, h)\n h' = {text}")
        simple = cg.simplify(cell)
        assert cg.parse(str(simple)) == simple
        at = sample(cell)
        ours, wanted = (unroll(c, at.params, at.x, at.state)[0] for c in (simple, cell))
        torch.testing.assert_close(ours, wanted, equal_nan=True)


# -- any cell --------------------------------------------------------------------------------------


def decorated(cell: CellGraph, rng: random.Random) -> CellGraph:
    """The same function with things in it that rules take out again."""
    text = str(replace(cell, doc=""))
    lines = text.splitlines()
    guises = [
        "1 * (?)",
        "(?) + 0",
        "-(-(?))",
        "(?) / 1",
        "0 - (0 - (?))",
        "((?) + 1) - 1",
        "((?) * 2) / 2",
    ]
    for i, line in enumerate(lines):
        name, equals, right = line.partition(" = ")
        if equals and name.split()[0] not in ("init", "cell"):
            lines[i] = f"{name} = {rng.choice(guises).replace('?', right)}"
    return cg.parse("\n".join(lines))


def ops(cell: CellGraph) -> int:
    return sum(not node.is_leaf for node in cell.nodes)


def simplified(cell: CellGraph) -> CellGraph | None:
    try:
        return cg.simplify(cell)
    except cg.CellError:
        return None


@settings(max_examples=150, deadline=None)
@given(cells())
def test_a_drawn_cell_keeps_its_values(cell: CellGraph) -> None:
    simple = simplified(cell)
    if simple is None:
        assert not cg.viable(cell)
        return
    assert_same_values(simple, cell)
    assert cg.simplify(simple) == simple
    assert cg.parse(str(simple)) == simple
    assert ops(simple) <= ops(cell)
    assert cg.viable(simple) == cg.viable(cell)
    kept = {p.name: p for p in cell.params}
    assert all(kept[p.name].init == p.init for p in simple.params)
    if simple.raw_x == cell.raw_x:
        assert key(simple) == key(cell)


@pytest.mark.parametrize("options", [{}, {"edits": (1, 3)}], ids=["p", "edits"])
def test_children_are_simplified_as_their_text_is(options: dict[str, tuple[int, int]]) -> None:
    """What a child brings with it, its normal form and its key, tells nothing that is not so."""
    rng, cells = random.Random(9), [cg.load(name) for name in cg.zoo.names()]
    changed = 0
    for _ in range(400):
        child = cg.mutate(rng.choice(cells), rng, **options)
        if child is None:
            continue
        read = cg.parse(str(child))
        simple = cg.simplify(child)
        assert simple == cg.simplify(read)
        assert cg.simplify(child) == simple  # when the child has given its normal form away
        assert child.key() == key(read)
        assert simple.key() == key(simple) == key(cg.parse(str(simple)))
        changed += simple is not child
        cells[rng.randrange(len(cells))] = simple
    assert changed > 20


def test_a_child_gives_its_normal_form_away() -> None:
    """A cell that lives on in a pool must not hold it."""
    child = next(c for seed in range(99) if (c := cg.mutate(cg.load("gru"), random.Random(seed))))

    def held() -> bool:
        tuples = [value for value in vars(child).values() if isinstance(value, tuple)]
        return any(isinstance(part, Form) for value in tuples for part in value)

    assert held()
    cg.simplify(child)
    assert not held()


def test_the_terms_of_a_difference_do_not_look_alike() -> None:
    cell = cg.parse("cell a(x, h)\n h' = tanh(x + U @ h) + (b - c)")
    form, image = form_of(cell)
    key_of(cell, form, image)
    assert unambiguous(form)


def test_a_key_that_could_be_another_one_is_not_kept() -> None:
    """Where refinement cannot tell terms apart, the order in which they are met decides."""
    child = cg.parse("cell a(x, h)\n h' = tanh(x + U @ h) * exp(0) + (b + c)")
    leave_form(child, *(found := form_of(child)))
    assert child.key() == key_of(child, *found)
    assert not unambiguous(found[0])
    simple = cg.simplify(child)
    assert simple is not child
    assert simple.key() == key(simple)


@settings(max_examples=60, deadline=None)
@given(cells(), st.integers(0, 2**32))
def test_decorations_keep_the_key_and_go(cell: CellGraph, seed: int) -> None:
    dressed = decorated(cell, random.Random(seed))
    assert dressed.key() == cell.key()
    simple = simplified(dressed)
    if simple is not None:
        assert_same_values(simple, dressed)
        assert cg.simplify(simple) == simple


def by_canonical_order(cell: CellGraph, seed: int) -> torch.Tensor:
    """Outputs of the interpreter from zero states, parameters drawn in their canonical order."""
    known = {p.name: p for p in cell.params}
    order = canonical(cell, *form_of(cell)).params
    rng = torch.Generator().manual_seed(seed)
    widths = {"H": 4, "X": 4 if cell.raw_x else 3}
    # x first: a parameter that cancels out has no place in the order, but is drawn all the same.
    x = torch.randn(5, 2, widths["X"], generator=rng, dtype=torch.float64)
    params = {
        name: 1.4 * torch.rand(known[name].shape(widths), generator=rng, dtype=torch.float64) - 0.7
        for name in [*order, *sorted(known.keys() - set(order))]
    }
    return unroll(cell, params, x, [torch.zeros(2, 4, dtype=torch.float64) for _ in cell.states])[0]


def test_cells_of_one_key_are_one_function() -> None:
    """Along a random walk: whatever shares a key with an earlier mutant puts out the same."""
    rng = random.Random(5)
    population = [cg.load(name) for name in cg.zoo.names()]
    first = {cell.key(): cell for cell in population}
    again = 0
    for _ in range(2400):
        child = cg.mutate(rng.choice(population), rng, edits=(1, 2))
        if child is None:
            continue
        twin = first.setdefault(child.key(), child)
        if twin is not child:
            again += 1
            torch.testing.assert_close(
                by_canonical_order(child, 3), by_canonical_order(twin, 3),
                rtol=1e-9, atol=1e-9, equal_nan=True,
            )  # fmt: skip
    assert again > 10


def test_the_form_says_which_rules_applied() -> None:
    form, _ = form_of(cg.parse("cell a(x, h)\n h' = tanh(x + h) + h - h"))
    assert isinstance(form, Form)
    assert form.fired["zero terms"] == 1
