"""Facts of cells: known ones of the literature, and every claim held against the interpreter."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass

import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from torch import Tensor

import cellgraph as cg
from cellgraph import CellError, CellGraph
from cellgraph.facts import Facts, facts
from cellgraph.interpret import step
from tests.strategies import Sample, cells, sample


@dataclass(frozen=True)
class Known:
    """A cell of the literature and what a reader of its paper would say."""

    text: str
    structure: str
    gates: tuple[str, ...] = ()
    coupled: tuple[str, ...] = ()
    blocks: tuple[tuple[str, ...], ...] = (("h",),)


KNOWN = {
    "minGRU": Known(
        """cell c(x, h)
    z  = sigmoid(W_z @ x)
    g  = W_h @ x
    h' = (1 - z) * h + z * g
""",
        "linear, elementwise",
        ("z",),
        ("h' = z * g + (1 - z) * h",),
    ),
    "minLSTM": Known(
        """cell c(x, h)
    f  = sigmoid(W_f @ x)
    i  = sigmoid(W_i @ x)
    n  = f + i
    h' = f / n * h + i / n * (W_h @ x)
""",
        "linear, elementwise",
        ("f", "i"),
        ("h' = f / n * h + i / n * W_h @ x",),
    ),
    "SRU": Known(
        """cell c(x, h, c)
    u  = W @ x
    f  = sigmoid(W_f @ x + v_f * c + b_f)
    r  = sigmoid(W_r @ x + v_r * c + b_r)
    c' = f * c + (1 - f) * u
    h' = r * tanh(c') + (1 - r) * x
""",
        "nonlinear, elementwise",
        ("f", "r"),
        ("c' = f * c + (1 - f) * u", "h' = r * tanh(c') + (1 - r) * x"),
        (("c",), ("h",)),
    ),
    "SRU without the state in its gates": Known(
        """cell c(x, h, c)
    f  = sigmoid(W_f @ x + b_f)
    r  = sigmoid(W_r @ x + b_r)
    c' = f * c + (1 - f) * (W @ x)
    h' = r * tanh(c') + (1 - r) * x
""",
        "linear, elementwise",
        ("f", "r"),
        ("c' = f * c + (1 - f) * W @ x", "h' = r * tanh(c') + (1 - r) * x"),
        (("c",), ("h",)),
    ),
    "QRNN, whose previous input is a state that the gates see through matrices": Known(
        """cell c(x, c, p) -> y
    z  = tanh(W @ x + V @ p)
    f  = sigmoid(W_f @ x + V_f @ p)
    o  = sigmoid(W_o @ x + V_o @ p)
    c' = f * z + (1 - f) * c
    y  = o * c'
    p' = x
""",
        "linear, elementwise",
        ("f", "o"),
        ("c' = f * z + (1 - f) * c",),
        (("p",), ("c",)),
    ),
    "IndRNN": Known("cell c(x, h)\n    h' = relu(W @ x + u * h + b)\n", "nonlinear, elementwise"),
    "linear RNN": Known("cell c(x, h)\n    h' = W @ x + U @ h\n", "linear, matrix"),
    "feed-forward": Known("cell c(x, h)\n    h' = tanh(W @ x)\n", "no recurrence"),
    "RAN": Known(
        """cell c(x, h, c)
    i  = sigmoid(W_i @ x + U_i @ h + b_i)
    f  = sigmoid(W_f @ x + U_f @ h + b_f)
    c' = i * (W @ x) + f * c
    h' = tanh(c')
""",
        "nonlinear, matrix",
        ("i", "f"),
        (),
        (("h", "c"),),
    ),
    "SCRN, slow features without a gate": Known(
        """cell c(x, h, s)
    s' = 0.05 * (B @ x) + 0.95 * s
    h' = sigmoid(P @ s' + A @ x + R @ h)
""",
        "nonlinear, matrix",
        blocks=(("s",), ("h",)),
    ),
    "JANET, whose gates do not add up to one": Known(
        """cell c(x, h)
    s  = W @ x + U @ h + b
    h' = sigmoid(s) * h + (1 - sigmoid(s - 1)) * tanh(V @ x + R @ h)
""",
        "nonlinear, matrix",
        ("gate1", "gate2"),
    ),
    "LEM, with a step size before its gates": Known(
        """cell c(x, y, z)
    d  = dt * sigmoid(W1 @ x + V1 @ y + b1)
    e  = dt * sigmoid(W2 @ x + V2 @ y + b2)
    z' = (1 - d) * z + d * tanh(W @ x + V @ y + b)
    y' = (1 - e) * y + e * tanh(U @ x + R @ z' + a)
    scalar dt
""",
        "nonlinear, matrix",
        ("d", "e"),
        (
            "z' = d * tanh(W @ x + V @ y + b) + (1 - d) * z",
            "y' = e * tanh(U @ x + R @ z' + a) + (1 - e) * y",
        ),
        (("y", "z"),),
    ),
    "BRC, whose gate of the feedback lies between 0 and 2": Known(
        """cell c(x, h)
    a  = 1 + tanh(W_a @ x + w_a * h)
    z  = sigmoid(W_c @ x + w_c * h)
    h' = z * h + (1 - z) * tanh(W @ x + a * h)
""",
        "nonlinear, elementwise",
        ("a", "z"),
        ("h' = z * h + (1 - z) * tanh(W @ x + a * h)",),
    ),
    "sLSTM, with exponential gates and a stabiliser": Known(
        """cell c(x, h, c, n, m)
    l  = W_i @ x + R_i @ h
    k  = log(sigmoid(W_f @ x + R_f @ h))
    o  = sigmoid(W_o @ x + R_o @ h)
    m' = max(k + m, l)
    i  = exp(l - m')
    f  = exp(k + m - m')
    c' = f * c + i * tanh(W_z @ x + R_z @ h)
    n' = f * n + i
    h' = o * c' / n'
""",
        "nonlinear, matrix",
        ("o", "i", "f"),
        (),
        (("h", "c", "n", "m"),),
    ),
    "RHN of depth 2": Known(
        """cell c(x, h)
    t  = sigmoid(V @ x + S @ h)
    s  = tanh(W @ x + R @ h) * t + h * (1 - t)
    u  = sigmoid(Q @ s)
    h' = tanh(P @ s) * u + s * (1 - u)
""",
        "nonlinear, matrix",
        ("t", "u"),
        (
            "s = t * tanh(W @ x + R @ h) + (1 - t) * h",
            "h' = u * tanh(P @ s) + (1 - u) * s",
        ),
    ),
    "a blend written as a step towards the candidate": Known(
        """cell c(x, h)
    z  = sigmoid(W_z @ x)
    h' = h + z * (tanh(W @ x + U @ h) - h)
""",
        "nonlinear, matrix",
        ("z",),
        ("h' = z * tanh(W @ x + U @ h) + (1 - z) * h",),
    ),
    "a gate that is only written as its complement": Known(
        """cell c(x, h)
    z  = sigmoid(-(W_z @ x))
    h' = z * h + sigmoid(W_z @ x) * (W @ x)
""",
        "linear, elementwise",
        ("z",),
        ("h' = sigmoid(W_z @ x) * W @ x + z * h",),
    ),
    "FastRNN, whose gate is learned alone": Known(
        """cell c(x, h)
    a  = sigmoid(s)
    h' = (1 - a) * h + a * tanh(W @ x + U @ h)
    scalar s
""",
        "nonlinear, matrix",
        ("a",),
        ("h' = a * tanh(W @ x + U @ h) + (1 - a) * h",),
    ),
    "states that cancel": Known(
        "cell c(x, h, k)\n    h' = tanh(W @ x) + (h + k) - (k + h)\n    k' = 2 * k - k + h'\n",
        "linear, elementwise",
        blocks=(("h",), ("k",)),
    ),
    "powers and divisions by a state are not linear": Known(
        "cell c(x, h, k)\n    h' = h * sigmoid(W @ x) + b / (2 + square(k))\n    k' = h * k\n",
        "nonlinear, elementwise",
        ("gate1",),
        blocks=(("h", "k"),),
    ),
}


@pytest.mark.parametrize("name", KNOWN)
def test_cells_of_the_literature(name: str) -> None:
    known = KNOWN[name]
    found = facts(cg.parse(known.text))
    assert found.structure == known.structure
    assert tuple(gate.name for gate in found.gates) == known.gates
    coupled = tuple(f"{c.value} = {c.equation}" for c in found.couplings)
    assert coupled == known.coupled
    assert tuple(block.states for block in found.blocks) == known.blocks


@pytest.mark.parametrize("name", KNOWN)
def test_what_is_denied_of_them_does_not_hold(name: str) -> None:
    cell = cg.parse(KNOWN[name].text)
    found, at = facts(cell), sample(cell, hidden=3, inputs=3, seed=1)
    every = {state.name for state in found.states}
    far = 10.0  # beyond the kink of a ReLU
    for state in found.states:
        assert _affine(cell, at, state.name, every, far) == state.linear, state
        assert _elementwise(cell, at, state.name, every) == state.elementwise, state
    for block in found.blocks:
        own = set(block.states)
        assert all(_affine(cell, at, s, own, far) for s in own) == block.linear, block
        assert all(_elementwise(cell, at, s, own) for s in own) == block.elementwise, block


@pytest.mark.parametrize("name", [*KNOWN, "gru", "mut1", "cifg"])
def test_the_equation_of_a_coupling_is_the_value_that_it_names(name: str) -> None:
    cell = cg.parse(KNOWN[name].text) if name in KNOWN else cg.load(name)
    for coupling in facts(cell).couplings:
        # The cell once more, putting out the equation in one and the value in the other.
        head, *lines = [line for line in str(cell).splitlines() if not line.startswith("#")]
        head = f"{head.partition(')')[0]}) -> probe"
        probes = [f"    probe = {text}" for text in (coupling.equation, _same(coupling.value))]
        pair = [cg.parse("\n".join([head, *lines, probe])) for probe in probes]
        at = sample(pair[0], hidden=3, inputs=3)
        outputs = [step(made, at.params, at.x[0], at.state)[0] for made in pair]
        torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-12, atol=1e-12)


def _same(value: str) -> str:
    return f"{value} + 0"


# -- claims against the interpreter ----------------------------------------------------------------


def _next(cell: CellGraph, at: Sample, name: str, state: dict[str, Tensor]) -> Tensor:
    """The next value of a state, (B, width)."""
    place = [s.name for s in cell.states].index(name)
    with torch.no_grad():
        return step(cell, at.params, at.x[0], [state[s.name] for s in cell.states])[1][place]


def _states(
    cell: CellGraph, at: Sample, changed: set[str], seed: int, scale: float = 1.0
) -> dict[str, Tensor]:
    """The states of the sample, those that change with other values, up to `scale`."""
    rng = torch.Generator().manual_seed(seed)
    found = {}
    for state, value in zip(cell.states, at.state, strict=True):
        other = 2 * torch.rand(value.shape, generator=rng, dtype=value.dtype) - 1
        found[state.name] = scale * other if state.name in changed else value.detach()
    return found


def _affine(cell: CellGraph, at: Sample, name: str, own: set[str], scale: float = 1.0) -> bool:
    """Is the next value affine in the states of `own`, the others given?"""
    left, right = (_states(cell, at, own, seed, scale) for seed in (1, 2))
    share = 0.375
    mixed = {n: share * left[n] + (1 - share) * right[n] for n in left}
    wanted = share * _next(cell, at, name, left) + (1 - share) * _next(cell, at, name, right)
    return torch.allclose(_next(cell, at, name, mixed), wanted, rtol=1e-9, atol=1e-9)


def _elementwise(cell: CellGraph, at: Sample, name: str, own: set[str]) -> bool:
    """Do the elements of the next value depend on the same elements of `own` alone?"""
    before, other = (_states(cell, at, own, seed) for seed in (1, 2))
    value = _next(cell, at, name, before)
    for read in own:
        for element in range(before[read].shape[-1]):
            moved = before[read].clone()
            moved[:, element] = other[read][:, element]
            changed = _next(cell, at, name, {**before, read: moved}) != value
            changed[:, element : element + 1] = False
            if changed.any():
                return False
    return True


def _assert_claims(cell: CellGraph, at: Sample) -> Facts:
    found = facts(cell, 3, 4)
    every = {state.name for state in cell.states}
    for state in found.states:
        unread = every - set(state.reads)
        pair = [_next(cell, at, state.name, _states(cell, at, unread, seed)) for seed in (1, 2)]
        assert torch.equal(*pair), f"{state} reads more"
        assert not state.linear or _affine(cell, at, state.name, every), state
        assert not state.elementwise or _elementwise(cell, at, state.name, every), state
        direct = every - set(state.through_matrices)
        assert _elementwise(cell, at, state.name, direct), state
    for block in found.blocks:
        own = set(block.states)
        assert block.recurrent == any(own & set(s.reads) for s in found.states if s.name in own)
        for name in block.states:
            assert not block.linear or _affine(cell, at, name, own), block
            assert not block.elementwise or _elementwise(cell, at, name, own), block
    return found


@settings(max_examples=60, deadline=None)
@given(cell=cells(), seed=st.integers(0, 100))
def test_claims_hold_for_random_cells(cell: CellGraph, seed: int) -> None:
    found = _assert_claims(cell, sample(cell, hidden=3, seed=seed))
    event(found.structure)
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False)) == found.to_dict()


@settings(max_examples=60, deadline=None)
@given(
    cell=cells(ops=("add", "sub", "mul", "div", "neg"), projected=False),
    seed=st.integers(0, 100),
)
def test_claims_hold_for_random_cells_of_sums_and_products(cell: CellGraph, seed: int) -> None:
    event(_assert_claims(cell, sample(cell, hidden=3, seed=seed)).structure)


def test_claims_hold_for_descendants_of_named_cells() -> None:
    """Mutants have shapes that nobody writes; they are linear often enough to prove something."""
    rng, seen = random.Random(5), list[str]()
    for name in cg.zoo.names():
        cell = cg.zoo.get(name)
        for _ in range(8):
            cell = cg.mutate(cell, rng) or cell
            seen.append(_assert_claims(cell, sample(cell, hidden=3, inputs=3)).structure)
    for word in ("linear, elementwise", "nonlinear, elementwise", "linear, matrix"):
        assert seen.count(word) > 2, word


# -- gates -----------------------------------------------------------------------------------------


def test_what_gates_see() -> None:
    peephole = {gate.name: gate for gate in facts(cg.load("lstm_peephole")).gates}
    assert list(peephole) == ["i", "f", "o"]
    assert peephole["i"].sees == {"x": ("matrix",), "h": ("matrix",), "c": ("vector",)}
    assert peephole["o"].sees == {"x": ("matrix",), "h": ("matrix",), "c'": ("vector",)}
    assert peephole["o"].expression == "sigmoid(W_o @ x + U_o @ h + p_o * c' + b_o)"
    assert not any(gate.reads for gate in peephole.values())
    mut1, mut2 = ({g.name: g.sees for g in facts(cg.load(n)).gates} for n in ("mut1", "mut2"))
    assert mut1["z"] == {"x": ("matrix",)}
    assert mut2["r"] == {"x": ("direct",), "h": ("matrix",)}


def test_gates_that_read_gates() -> None:
    recurrent = facts(cg.load("fgr")).gates
    assert [gate.name for gate in recurrent] == ["i'", "f'", "o'"]
    assert all(gate.reads == ("f", "i", "o") for gate in recurrent), "those of the step before"
    text = """cell c(x, h)
    i  = sigmoid(W @ x)
    f  = sigmoid(V @ x + Q @ i + i)
    h' = f * h + i * tanh(K @ x)
"""
    first, second = facts(cg.parse(text)).gates
    assert (first.reads, second.reads) == ((), ("i",))
    assert second.sees == {"x": ("matrix",)}


def test_a_tanh_is_a_gate_where_it_scales_a_state() -> None:
    """Jozefowicz' LSTM prints a tanh as output gate, and another one as candidate."""
    gates = {gate.name: gate.op for gate in facts(cg.load("lstm_jozefowicz")).gates}
    assert gates == {"j": "sigmoid", "f": "sigmoid", "o": "tanh"}


def test_the_second_name_of_a_coupled_gate() -> None:
    (coupling,) = facts(cg.load("cifg")).couplings
    assert coupling.gates == ("i", "f")
    assert (coupling.shares, coupling.parts) == (("i", "f"), ("g", "c"))


def test_the_lstm_has_no_coupling() -> None:
    """f * c + i * g: no matter how it is grouped, nothing is shared out."""
    assert facts(cg.load("lstm")).couplings == ()
    text = "cell c(x, h)\n    f = sigmoid(W @ x)\n    h' = h - f * h + b\n"
    assert facts(cg.parse(text)).couplings == ()


@pytest.mark.parametrize(
    "update",
    [
        "h' = (1 - z) * g + h * z",
        "h' = g + z * (h - g)",
        "h' = g - z * g + z * h",
        "h' = h - (1 - z) * (h - g)",
    ],
)
def test_facts_do_not_depend_on_how_a_cell_is_written(update: str) -> None:
    text = str(cg.load("gru")).replace("h' = z * h + (1 - z) * g", update)
    found, gru = facts(cg.parse(text)), facts(cg.load("gru"))
    (ours,), (wanted,) = found.couplings, gru.couplings
    assert found.blocks == gru.blocks
    assert found.gates == gru.gates
    assert set(zip(ours.shares, ours.parts, strict=True)) == set(
        zip(wanted.shares, wanted.parts, strict=True)
    )


def test_what_cancels_when_products_are_multiplied_out() -> None:
    """(z + a) * (h - a) + a * a - z * h = -a * z + a * h: h is not shared out by z."""
    text = """cell c(x, h)
    z  = sigmoid(W @ x)
    h' = (z + a) * (h - a) + a * a - z * h
"""
    assert facts(cg.parse(text)).couplings == ()
    text = text.replace("- z * h", "- z * h + (1 - z) * h + z * b")
    (coupling,) = facts(cg.parse(text)).couplings
    assert coupling.value == "h'"
    assert coupling.equation == "z * (b - a) + (1 - z) * h"  # and a * h beside it


def test_a_made_up_name_is_free() -> None:
    text = "cell c(x, h)\n    gate1 = W @ x\n    h' = sigmoid(V @ x) * h + gate2 * gate1\n"
    (gate,) = facts(cg.parse(text)).gates
    assert (gate.name, gate.expression) == ("gate3", "sigmoid(V @ x)")


def test_long_chains_end() -> None:
    """Nothing walks a cell by recursion, and no polynomial explodes."""
    lines = ["    s0 = sigmoid(W @ x) * h + b"]
    lines += [f"    s{i} = leaky_relu(2 * s{i - 1}) * (b - h) * (h - c)" for i in range(1, 250)]
    found = facts(cg.parse("\n".join(["cell c(x, h)", *lines, "    h' = tanh(s249)", ""])))
    assert found.structure == "nonlinear, elementwise"
    deep = "(h - a)" + " * (h - b)" * 12
    assert facts(cg.parse(f"cell c(x, h)\n    h' = tanh({deep} + h)\n")).couplings == ()


# -- sizes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "recurrent", "given", "vectors", "scalars"),
    [("lstm", 4, 4, 4, 0), ("mut1", 2, 2, 3, 0), ("fgr", 13, 4, 7, 0), ("tanh_rnn", 1, 1, 1, 0)],
)
def test_parameters_by_kind(
    name: str, recurrent: int, given: int, vectors: int, scalars: int
) -> None:
    found = facts(cg.load(name), 10, 20)
    kinds = (found.recurrent_matrices, found.input_matrices, found.vectors, found.scalars)
    assert kinds == (recurrent, given, vectors, scalars)
    assert found.matrices == recurrent + given
    assert found.recurrent_multiplications == recurrent * 20 * 20
    assert found.parameters == cg.count_parameters(cg.load(name), 10, 20)
    assert found.flops_per_step == cg.flops_per_step(cg.load(name), 10, 20)
    assert found.widths == {"H": 20, "X": 10}


def test_a_matrix_counts_once_and_its_products_each() -> None:
    cell = cg.parse("cell c(x, h)\n    h' = U @ tanh(U @ h) + W @ x + W @ b\n")
    found = facts(cell, 3, 4)
    assert (found.recurrent_matrices, found.input_matrices) == (1, 1)
    assert found.recurrent_multiplications == 2 * 16


def test_declared_widths() -> None:
    cell = cg.parse("cell c(x, r: P, c)\n    c' = U @ r + W @ x\n    r' = V @ c'\n")
    assert facts(cell).widths == {"H": 64, "P": 32, "X": 64}
    assert facts(cell, 4, 8, widths={"P": 3}).recurrent_multiplications == 8 * 3 + 3 * 8
    with pytest.raises(CellError, match="has no width Q"):
        facts(cell, widths={"Q": 3})
    with pytest.raises(CellError, match="hidden_size is 'wide', expected a whole number"):
        facts(cell, 4, "wide")  # type: ignore[arg-type]
