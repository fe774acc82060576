"""Exports: files that work without this package. Generated code runs in another process only."""

from __future__ import annotations

import ast
import inspect
import json
import random
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings

import cellgraph as cg
from cellgraph.exporters.source import Names, Number, Source, camel, comment
from cellgraph.graph import Node
from cellgraph.layer import CellLayer
from cellgraph.ops import OPS
from tests.strategies import cells, gradients

GOLDEN = Path(__file__).parents[1] / "golden" / "gru_torch.py"
T, B, X, H = 4, 2, 3, 4

#: Cells whose text is hard to turn into Python.
HARD = {
    "words of Python": """
        cell none(x, self, outputs, torch: lambda, zip: input_size, for: __p) -> nn
            nn = tanh(print @ x + None @ outputs + torch_ @ torch + lambda + __W @ zip + V @ for)
            self' = self * 0.5 + nn * __b
            outputs' = self' * outputs + weight_x - self
            torch' = tanh(__V @ torch + def @ x + __q__)
            zip' = tanh(Q @ zip)
            for' = tanh(R @ outputs) + yield
            init print = 2
            init def = 0.25
            init weight_x = -1e-05
            init Q = identity(0.9)
    """,
    "skew matrices": """
        cell turned(x, h, U_)
            h' = tanh(lambda @ h + self @ U_ + __A @ W @ x + R @ b)
            U_' = tanh(lambda @ U_ + x) * h'
            skew lambda, self, __A, R
    """,
    "the old state is read late": "cell late(x, h, c)\n c' = tanh(W @ x + c)\n h' = c' - c * h",
    "states swap": "cell swap(x, h, c)\n h' = tanh(W @ x + c)\n c' = h",
    "states share a next value": "cell both(x, h, c)\n h' = tanh(W @ x + h * c)\n c' = h'",
    "a state is a parameter": "cell held(x, h, c)\n c' = b\n h' = tanh(W @ x + U @ c + h)",
    "a state is x": "cell kept(x, h, c)\n h' = tanh(U @ h + c)\n c' = x",
    "no state changes": "cell still(x, h) -> y\n y = tanh(W @ x)\n h' = h",
    "the output is constant": "cell flat(x, h) -> y\n y = tanh(B @ b)\n h' = tanh(h + W @ x)",
    "the output is a parameter": "cell bias(x, h) -> y\n y = b\n h' = tanh(h + W @ x)",
    "the output is the old state": "cell old(x, h) -> y\n y = h\n h' = tanh(U @ h + W @ x)",
    "the output is x": "cell pass_on(x, h) -> y\n y = x\n h' = tanh(U @ h + x)",
    "no x": "cell alone(x, h)\n h' = tanh(U @ h + b)",
    "no parameters": "cell bare(x, h)\n h' = tanh(h - 0.5 * x)",
    "numbers among themselves": """
        cell value_error(x, h)
            scalar s
            a  = max(0.5, W @ x) * s + max(h, 1 - 2) * tanh(0.5) + step(3) * square(2)
            h' = tanh(a / (1 / -2) - min((2 - 1) / exp(-2), h) + max(s, 1 / 0) * 0)
    """.replace("max(s, 1 / 0) * 0", "1 / (1 / 0)"),
    "deep": f"cell deep(x, h)\n h' = {'tanh(' * 95}U @ h + W @ x{')' * 95}",
    "long": "cell long(x, h)\n h' = tanh(U @ h"
    + "".join(f" + W{i} @ x * V{i} @ h" for i in range(30))
    + ")",
    "many signs": f"cell signs(x, h)\n h' = tanh({'-' * 400}(U @ h + W @ x))",
}

#: Comments that would be code, an encoding or the end of a line if they got out.
HOSTILE_DOC = (
    "coding: utf-7\n\"\"\"\n'''); raise SystemExit(1) #\n\\\na\rraise SystemExit(1)\n"
    "b\x0craise SystemExit(1)\nc\x00d\u2028raise SystemExit(1)\u202e\ud800\n{braces} %s {0}"
)

#: Run by a Python that knows torch and the exported files, and nothing of ours.
CHECKER = """
import importlib, inspect, json, sys, traceback
import torch

torch.set_num_threads(1)
sys.path.insert(0, ".")


def check(case):
    kind = getattr(importlib.import_module(case["module"]), case["class"])
    arguments = inspect.signature(kind).parameters.values()
    names = [p.name for p in arguments if p.kind is p.KEYWORD_ONLY]
    options = case["options"] | dict(zip(names, case["widths"], strict=True))
    torch.manual_seed(0)
    module = kind(*case["sizes"], **options)
    assert list(module.state_dict()) == list(case["start"])
    for name, value in module.state_dict().items():
        assert torch.equal(value, case["start"][name]), name
    module = module.double()
    module.load_state_dict(case["weights"])
    state = [value.requires_grad_() for value in case["state"]]
    x = case["x"].requires_grad_()
    y, last = module(x, state[0] if len(state) == 1 else tuple(state))
    assert isinstance(last, tuple) == (len(state) > 1)
    results = [y, *(last if isinstance(last, tuple) else [last])]
    rng = torch.Generator().manual_seed(1)
    total = torch.zeros((), dtype=torch.float64)
    for value in results:
        total = total + (value * torch.randn(value.shape, generator=rng, dtype=total.dtype)).sum()
    over = [*module.parameters(), x, *state]
    found = [None] * len(over)
    if total.requires_grad:
        found = torch.autograd.grad(total, over, allow_unused=True)
    results += [torch.zeros_like(v) if g is None else g for v, g in zip(over, found, strict=True)]
    for result, wanted in zip(results, case["expected"], strict=True):
        torch.testing.assert_close(result, wanted, rtol=1e-7, atol=1e-9)


results = {}
for name, case in torch.load("cases.pt", weights_only=True).items():
    try:
        check(case)
        results[name] = "equal"
    except Exception:
        results[name] = traceback.format_exc()
foreign = [name for name in sys.modules if name.partition(".")[0] == "cellgraph"]
print(json.dumps({"results": results, "foreign": foreign}))
"""


def run_python(folder: Path, code: str) -> str:
    """The standard output of an isolated Python: no PYTHONPATH, warnings are errors."""
    command = [sys.executable, "-I", "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@dataclass
class Batch:
    """Exports compared in one other process, which takes longer to start than to compare."""

    folder: Path
    cases: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, name: str, cell: cg.CellGraph, layers: int = 1, both: bool = False) -> None:
        module = f"m{len(self.cases)}"
        cg.export(cell, self.folder / f"{module}.py", "torch")
        widths = {width: 2 + i for i, width in enumerate(cell.widths[1:])}
        torch.manual_seed(0)
        # Cells that amplify tell apart what other orders of summation round differently.
        layer = cg.compile(cell, X, H, layers, bidirectional=both, widths=widths, backend="eager")
        start = {name: value.clone() for name, value in layer.state_dict().items()}
        layer = layer.double()
        shapes = [(T, B, X), *((len(layer.cells), B, size) for size in layer.state_sizes)]
        x, *state = [torch.randn(*s, dtype=torch.float64).requires_grad_() for s in shapes]
        y, last = layer(x, state[0] if len(state) == 1 else tuple(state))
        results = [y, *(last if isinstance(last, tuple) else [last])]
        results += gradients(results, [*layer.parameters(), x, *state])
        self.cases[name] = {
            "module": module,
            "class": camel(cell.name),
            "sizes": [X, H],
            "options": {"num_layers": layers, "bidirectional": both},
            "widths": list(widths.values()),
            "start": start,
            "weights": dict(layer.state_dict()),
            "x": x.detach(),
            "state": [value.detach() for value in state],
            "expected": [value.detach() for value in results],
        }

    def compare(self) -> dict[str, str]:
        torch.save(self.cases, self.folder / "cases.pt")
        answer = json.loads(run_python(self.folder, CHECKER))
        assert answer["foreign"] == []
        results: dict[str, str] = answer["results"]
        return results


def one_op(name: str) -> cg.CellGraph:
    """A cell around one op, whose arguments stay within the op's domain."""
    low, high = OPS[name].domain
    middle, half = (low + high) / 2, (high - low) / 2
    cell = cg.parse(
        "cell t(x, h, c)\n"
        f" h' = {middle} + {half} * tanh(W @ x + U @ h)\n"
        f" c' = {middle} + {half} * tanh(V @ x + R @ h)"
    )
    value = Node(name, tuple(state.next for state in cell.states)[: OPS[name].arity])
    return cg.build(f"op_{name}", [("h", "H", Node("tanh", (value,)))], value)


def mutants(count: int) -> list[cg.CellGraph]:
    rng, found = random.Random(5), []
    while len(found) < count:
        cell = cg.load(rng.choice(cg.zoo.names()))
        for _ in range(rng.randint(1, 6)):
            cell = cg.mutate(cell, rng) or cell
        found.append(cell)
    return found


def drawn_cells(count: int) -> list[cg.CellGraph]:
    found: list[cg.CellGraph] = []

    @settings(max_examples=count, database=None, deadline=None, phases=[Phase.generate])
    @given(cells(smooth=True))
    def collect(cell: cg.CellGraph) -> None:
        found.append(cell)

    collect()
    return found


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    batch = Batch(tmp_path_factory.mktemp("exports"))
    for name in cg.zoo.names():
        batch.add(name, cg.load(name))
        batch.add(f"{name}, stacked", cg.load(name), layers=2, both=True)
    for name, text in HARD.items():
        batch.add(name, cg.parse(text))
        batch.add(f"{name}, stacked", cg.parse(text), layers=2, both=True)
    for name in OPS:
        batch.add(f"op {name}", one_op(name))
    for i, cell in enumerate(mutants(20)):
        batch.add(f"mutant {i}: {cell}", cell, layers=1 + i % 2, both=i % 3 == 0)
    for i, cell in enumerate(drawn_cells(40)):
        batch.add(f"drawn {i}: {cell}", cell, layers=1 + i % 2, both=i % 3 == 0)
    batch.add("hostile comment", replace(cg.load("gru"), doc=HOSTILE_DOC))
    return batch.compare()


# -- the same function, in another process --------------------------------------------------------


@pytest.mark.parametrize("name", [*cg.zoo.names(), *HARD])
def test_torch_export_equals_the_layer(name: str, compared: dict[str, str]) -> None:
    assert compared[name] == "equal"
    assert compared[f"{name}, stacked"] == "equal"


@pytest.mark.parametrize("name", OPS)
def test_every_op_is_exported(name: str, compared: dict[str, str]) -> None:
    assert compared[f"op {name}"] == "equal"


@pytest.mark.parametrize("kind", ["mutant", "drawn"])
def test_random_cells_are_exported(kind: str, compared: dict[str, str]) -> None:
    found = {name: result for name, result in compared.items() if name.startswith(kind)}
    assert len(found) >= 20
    assert {name: result for name, result in found.items() if result != "equal"} == {}


def test_a_hostile_comment_stays_a_comment(compared: dict[str, str], tmp_path: Path) -> None:
    assert compared["hostile comment"] == "equal"
    path = cg.export(replace(cg.load("gru"), doc=HOSTILE_DOC), tmp_path / "a.py", "torch")
    plain = cg.export(cg.load("gru"), tmp_path / "b.py", "torch")
    assert ast.dump(ast.parse(path.read_bytes())) == ast.dump(ast.parse(plain.read_bytes()))
    # Python reads an encoding from a comment on the first two lines, wherever the module starts.
    assert not any(line.startswith("#") for line in path.read_text().splitlines()[:2])


MANNERS = """
import torch
from gru import Gru
from lstm import Lstm
from torch import nn

for kind, options in [(Gru, {}), (Lstm, {}), (Gru, {"bidirectional": True, "num_layers": 2})]:
    module = kind(3, 4, **options)
    x = torch.randn(5, 2, 3)
    y, last = module(x)
    flat = last if isinstance(last, tuple) else (last,)
    first = kind(3, 4, batch_first=True, **options)
    first.load_state_dict(module.state_dict())
    y_first, last_first = first(x.transpose(0, 1))
    torch.testing.assert_close(y_first.transpose(0, 1), y)
    torch.testing.assert_close(last_first, last)
    alone, last_alone = module(x[:, 0], None)
    torch.testing.assert_close(alone, y[:, 0])
    torch.testing.assert_close(
        last_alone if isinstance(last_alone, tuple) else (last_alone,), tuple(s[:, 0] for s in flat)
    )
    given = tuple(s[:, 0] for s in flat)
    again, _ = module(x[:, 0], given if isinstance(last, tuple) else given[0])
    torch.testing.assert_close(again, module(x, last)[0][:, 0])

dropped = Gru(3, 4, num_layers=2, dropout=0.5)
assert not torch.equal(dropped(x)[0], dropped(x)[0])
dropped.eval()
assert torch.equal(dropped(x)[0], dropped(x)[0])
assert not torch.equal(dropped.cells[0].W_r, Gru(3, 4).cells[0].W_r)

for module, x, state, message in [
    (Gru(3, 4), torch.zeros(5, 2, 9), None, "x has shape (5, 2, 9), expected (T, B, 3)"),
    (Gru(3, 4), torch.zeros(3), None, "x has shape (3,), expected (T, B, 3)"),
    (Gru(3, 4), torch.zeros(0, 2, 3), None, "x has no time steps, expected at least one"),
    (Gru(3, 4), torch.zeros(5, 2, 3), torch.zeros(2, 2, 4),
     "the state has shape (2, 2, 4), expected (1, 2, 4)"),
    (Lstm(3, 4), torch.zeros(5, 2, 3), (torch.zeros(1, 2, 4),),
     "the states have shapes [(1, 2, 4)], expected [(1, 2, 4), (1, 2, 4)]"),
]:
    try:
        module(x, state)
    except ValueError as error:
        assert str(error) == message, str(error)
    else:
        raise AssertionError(message)

from layer import Wide

wide = Wide()
assert (wide.input_size, wide.hidden_size, wide.num_layers, wide.dropout) == (3, 4, 2, 0.25)
assert wide.batch_first and wide.directions == 2
assert wide(torch.zeros(1, 1, 3))[1][1].shape == (4, 1, 7)
"""


def test_manners_of_the_exported_class(tmp_path: Path) -> None:
    cg.export("gru", tmp_path / "gru.py", "torch")
    cg.export("lstm", tmp_path / "lstm.py", "torch")
    wide = cg.parse("cell wide(x, h, r: P)\n r' = tanh(R @ h)\n h' = tanh(W @ x + U @ r)")
    layer = cg.compile(wide, 3, 4, 2, True, 0.25, True, widths={"P": 7})
    cg.export(layer, tmp_path / "layer.py", "torch")
    run_python(tmp_path, f"import sys\nsys.path.insert(0, '.')\n{MANNERS}")


def test_golden_gru(tmp_path: Path) -> None:
    path = cg.export("gru", tmp_path / "gru.py", "torch")
    assert path.read_text() == GOLDEN.read_text(), (
        "the export of the GRU reads differently; if that is meant, write it anew: "
        f"cellgraph.export('gru', '{GOLDEN}', 'torch', overwrite=True)"
    )


@pytest.mark.parametrize("name", cg.zoo.names())
def test_exports_of_the_zoo_have_short_lines(name: str, tmp_path: Path) -> None:
    text = cg.export(name, tmp_path / "a.py", "torch").read_text()
    assert max(map(len, text.splitlines())) <= 100
    assert not any(line.endswith(" ") for line in text.splitlines())


@pytest.mark.parametrize("name", ["forward", "training", "reset_parameters", "input_projection"])
def test_parameters_that_the_module_has_no_place_for(name: str, tmp_path: Path) -> None:
    cell = cg.parse(f"cell a(x, h)\n h' = tanh(W @ x + {name} * h)")
    with pytest.raises(cg.CellError, match=f"parameter {name} of cell a has the name of an attr"):
        cg.export(cell, tmp_path / "a.py", "torch")
    assert list(tmp_path.iterdir()) == []


# -- files ----------------------------------------------------------------------------------------


def test_the_cell_format_is_notation(tmp_path: Path) -> None:
    for source in ("lstm", cg.load("lstm"), cg.compile("lstm", 2, 3)):
        path = cg.export(source, tmp_path / "mine.cell", "cell", overwrite=True)
        assert path == tmp_path / "mine.cell"
        assert path.read_text() == str(cg.load("lstm"))
        assert cg.load(path) == cg.load("lstm")
    assert cg.export(path, str(tmp_path / "again.cell"), "cell").read_bytes() == path.read_bytes()
    hostile = replace(cg.load("lstm"), doc="\ud800")
    assert cg.load(cg.export(hostile, tmp_path / "odd.cell", "cell")) == hostile


def test_sizes_of_a_layer_become_defaults(tmp_path: Path) -> None:
    layer = cg.compile("gru", 7, 9, 2, bidirectional=True)
    text = cg.export(layer, tmp_path / "a.py", "torch").read_text()
    assert "input_size: int = 7," in text
    assert "hidden_size: int = 9," in text
    assert "bidirectional: bool = True," in text


def test_the_constructor_has_the_arguments_of_our_layer(tmp_path: Path) -> None:
    module = ast.parse(cg.export("gru", tmp_path / "a.py", "torch").read_text())
    layers = module.body[-1]
    assert isinstance(layers, ast.ClassDef)
    init = next(f for f in layers.body if isinstance(f, ast.FunctionDef) and f.name == "__init__")
    ours = list(inspect.signature(CellLayer.__init__).parameters)
    assert [a.arg for a in init.args.args][1:] == ours[2:8]


def bad_targets(folder: Path) -> list[tuple[Path | str, str]]:
    (folder / "there.py").write_text("precious")
    return [
        (folder / "there.py", "exists, expected a new path"),
        (folder, "is a directory, expected the path of a file"),
        (folder / "missing" / "a.py", "cannot be written (No such file or directory)"),
        (folder / "there.py" / "a.py", "cannot be written (Not a directory)"),
        (folder / ("a" * 5000), "cannot be written (File name too long)"),
        (f"{folder}/a\0b", "cannot be written (embedded null byte)"),
    ]


@pytest.mark.parametrize("case", range(6))
def test_bad_targets_are_refused_in_one_line(case: int, tmp_path: Path) -> None:
    path, message = bad_targets(tmp_path)[case]
    with pytest.raises(cg.CellError) as caught:
        cg.export("gru", path, "torch")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["there.py"]
    assert (tmp_path / "there.py").read_text() == "precious"


def test_overwriting_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.cell"
    path.write_text("old")
    cg.export("gru", path, "cell", overwrite=True)
    assert path.read_text() == str(cg.load("gru"))
    assert [p.name for p in tmp_path.iterdir()] == ["a.cell"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_nothing_remains_of_a_write_that_fails(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*paths: Path) -> None:
        assert len(list(tmp_path.iterdir())) == 1  # the temporary file
        raise error

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises((cg.CellError, KeyboardInterrupt)):
        cg.export("gru", tmp_path / "a.py", "torch")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("source", "format", "message"),
    [
        ("gru", "xyz", "no export format 'xyz', expected one of cell, torch"),
        ("gru", "Torch", "no export format 'Torch' (did you mean torch?), expected one of"),
        ("guru", "torch", "no cell named 'guru' (did you mean gru?)"),
        (3, "torch", "a int cannot be exported, expected a cell or a layer"),
    ],
)
def test_bad_sources_and_formats(source: Any, format: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(cg.CellError) as caught:
        cg.export(source, tmp_path / "a", format)
    assert str(caught.value).startswith(message)
    assert list(tmp_path.iterdir()) == []


# -- source code ----------------------------------------------------------------------------------


def test_expressions_take_as_few_parentheses_as_python_needs() -> None:
    a, b, c = Source("a"), Source("b"), Source("c")
    assert str((a + b) * c) == "(a + b) * c"
    assert str(a + b * c) == "a + b * c"
    assert str(a - (b - c)) == "a - (b - c)"
    assert str(a - b - c) == "a - b - c"
    assert str(a / (b * c)) == "a / (b * c)"
    assert str(-(a + b)) == "-(a + b)"
    assert str(-(-(a)) * b) == "-(-a) * b"  # noqa: B002  # two signs, no decrement
    assert str((a > 0).to((b + c).dtype)) == "(a > 0).to((b + c).dtype)"
    assert str(Source("f")(a + b, 0.01, dim=-1)) == "f(a + b, 0.01, dim=-1)"


def test_numbers_become_tensors_where_python_needs_one() -> None:
    one = Number("1", lambda: Source("one"))
    a, f = Source("a"), Source("f")
    assert str(one - a) == "1 - a"
    assert str(a - Number("-1", lambda: Source("minus"))) == "a - -1"
    assert str(one / one) == "one / 1"
    assert str(f(one, a)) == "f(one, a)"
    assert str(-one) == "-one"
    assert str((one > 0).to(one.dtype)) == "(one > 0).to(one.dtype)"


def test_names_avoid_words_and_each_other() -> None:
    names = Names(["x"])
    given = [names.give(n) for n in ["h", "h", "h", "for", "for", "x", "max", "__a", "__a", "_b"]]
    assert given == ["h", "h_2", "h_3", "for_", "for_2", "x_", "max_", "_a", "_a_2", "_b"]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("gru", "Gru"), ("gru_reset_after", "GruResetAfter"), ("none", "NoneLayer"), ("_", "Cell"),
     ("value_error", "ValueErrorLayer"), ("_1a", "Cell1a"), ("cell_12ab", "Cell12ab")],
)  # fmt: skip
def test_names_of_classes(name: str, wanted: str) -> None:
    assert camel(name) == wanted


def test_comments_keep_to_their_line() -> None:
    assert comment("a\rb\x0cc\u2028d\x00e\u202ef") == "# a?b?c?d?e?f"
    assert comment("Koutník × 2") == "# Koutník × 2"
    assert comment("") == "#"
