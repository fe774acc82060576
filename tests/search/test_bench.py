"""`cellsearch bench kernels`: what is counted and computed around a clock, never the time."""

from __future__ import annotations

import gc
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import cellgraph as cg
from evaluators import tasks
from evaluators.task import Batch, Task
from search import cli
from search.bench import building, cells, kernels, machine, rates, summary, timing, training
from search.bench.cells import Pass, Row, product_flops
from search.bench.population import mutants, named
from search.bench.request import PARTS, SHAPES, Request, Shape
from search.bench.timing import Effort, Times, geometric_mean, interleaved, percentile
from search.config import MutationConfig
from tests.evaluators.small_tasks import Echo, Frames, Stream

SMALL = Shape(3, 5, 7)
ONCE = Effort(seconds=0.0, least=1, most=1, turn=0.0)


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As little of everything as there can be."""
    for module, name in ((cells, "NAMED"), (cells, "FEW"), (rates, "EFFORT"), (training, "EFFORT")):
        monkeypatch.setattr(module, name, ONCE)
    monkeypatch.setattr(rates, "SHAPES", ((3, 5, 4), (20, 40, 30)))
    for name in ("CELLS", "BATCHES", "TOGETHER"):
        monkeypatch.setattr(building, name, 2)
    monkeypatch.setattr(training, "names", lambda: ["memorisation"])


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    try:
        status = cli.main(["bench", "kernels", *words])
    except SystemExit as stop:  # argparse
        status = int(stop.code or 0)
    out, err = capsys.readouterr()
    return status, out, err


# -- times


def test_all_variants_run_equally_often() -> None:
    calls: list[str] = []
    variants = {name: lambda name=name: calls.append(name) for name in "abc"}
    times = interleaved(variants, Effort(seconds=0.0, least=4, most=9, turn=0.0))
    assert [len(t.runs) for t in times.values()] == [4, 4, 4]
    assert len(interleaved(variants, Effort(math.inf, 4, 9, 0.0))["a"].runs) == 9
    calls.clear()
    interleaved(variants, Effort(math.inf, 4, 9, 0.0))
    rounds = ["".join(calls[i : i + 3]) for i in range(0, len(calls), 3)]
    assert len(rounds) == 10  # the first does not count
    assert {"".join(sorted(r)) for r in rounds} == {"abc"}
    assert len(set(rounds)) > 3  # orders
    calls.clear()
    interleaved(variants, Effort(math.inf, 4, 9, 0.0))
    assert rounds == ["".join(calls[i : i + 3]) for i in range(0, len(calls), 3)]


def test_a_variant_may_say_how_long_it_took_and_short_ones_fill_their_turn() -> None:
    calls = {"short": 0, "long": 0}

    def run(name: str, seconds: float) -> float:
        calls[name] += 1
        return seconds

    variants = {"short": lambda: run("short", 0.25), "long": lambda: run("long", 3.0)}
    times = interleaved(variants, Effort(seconds=0.0, least=3, most=3, turn=1.0))
    assert times == {"short": Times((0.25,) * 3), "long": Times((3.0,) * 3)}
    assert calls == {"short": 1 + 3 * 4, "long": 1 + 3}


def test_the_collector_rests_while_time_is_taken_and_goes_on_after_an_error() -> None:
    assert gc.isenabled()
    seen: list[bool] = []
    interleaved({"a": lambda: seen.append(gc.isenabled())}, ONCE)
    assert seen == [False, False]
    assert gc.isenabled()

    def broken() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interleaved({"a": broken}, ONCE)
    assert gc.isenabled()


def test_means_and_percentiles() -> None:
    assert geometric_mean([]) is None
    assert geometric_mean([2.0, 8.0]) == pytest.approx(4.0)
    assert geometric_mean(iter([3.0])) == pytest.approx(3.0)
    hundred = [float(i) for i in range(100, 0, -1)]
    assert [percentile(hundred, p) for p in (1, 50, 90, 100)] == [1.0, 50.0, 90.0, 100.0]
    assert percentile([7.0], 90) == percentile([7.0], 0) == 7.0
    assert Times((3.0, 1.0, 2.0)).median == 2.0
    # A machine that was slow for one round, and then for the second half.
    assert Times((2.0, 20.0, 2.0, 40.0, 60.0)).over(Times((1.0, 10.0, 1.0, 20.0, 20.0))) == 2.0


# -- counts


@pytest.mark.parametrize(
    ("text", "without", "with_input"),
    [
        # (products forward + gradients of matrices + gradients of operands) × 2 H²
        ("cell a(x, h)\n    h' = tanh(W @ x + U @ h)\n", 2 + 2 + 1, 2 + 2 + 2),
        ("cell a(x, h)\n    h' = tanh(W @ tanh(x) + U @ h)\n", 2 + 2 + 1, 2 + 2 + 2),
        # A product of what was learned: its gradient leads to V.
        ("cell a(x, h)\n    h' = tanh(W @ tanh(V @ x) + h)\n", 2 + 2 + 1, 2 + 2 + 2),
        ("cell a(x, h)\n    h' = tanh(W @ tanh(x + b) + h)\n", 1 + 1 + 1, 1 + 1 + 1),
        # Computed once a sequence.
        ("cell a(x, h)\n    h' = tanh(W @ b + x + h)\n", 0, 0),
        # One product, however often it is used.
        ("cell a(x, h)\n    u = U @ h\n    h' = tanh(u * x + u)\n", 3, 3),
    ],
)
def test_products_of_a_cell(text: str, without: int, with_input: int) -> None:
    cell = cg.parse(text)
    once = 2 * SMALL.hidden**2 * SMALL.steps * SMALL.rows
    assert product_flops(cell, SMALL, input_grad=False) == without * once
    assert product_flops(cell, SMALL, input_grad=True) == with_input * once


def test_products_of_lstm_and_gru() -> None:
    steps, rows, hidden = SMALL
    for name, gates in (("lstm", 4), ("gru", 3)):
        forward = 2 * gates * hidden * (hidden + hidden) * steps * rows
        found = product_flops(cg.load(name), SMALL, input_grad=True)
        assert found == 3 * forward
        assert product_flops(cg.load(name), SMALL, input_grad=False) == found - forward // 2


def test_declared_widths_are_counted() -> None:
    cell = cg.parse("cell a(x, h, m: P)\n    h' = tanh(W @ x + U @ m)\n    m' = V @ h\n")
    assert product_flops(cell, SMALL, input_grad=False) == product_flops(
        cg.parse("cell a(x, h, m)\n    h' = tanh(W @ x + U @ m)\n    m' = V @ h\n"),
        SMALL,
        input_grad=False,
    )


def test_mutants() -> None:
    made = mutants(3, 40)
    keys = [cell.key() for cell in made]
    assert len(set(keys)) == 40
    assert not {cg.zoo.get(name).key() for name in cg.zoo.names()} & set(keys)
    assert max(len(cell.nodes) for cell in made) <= MutationConfig().max_nodes
    assert [cell.key() for cell in mutants(3, 15)] == keys[:15]
    assert [cell.key() for cell in mutants(4, 15)] != keys[:15]


def test_named_cells_are_measured_once() -> None:
    keys = {cg.zoo.get(name).key() for name in cg.zoo.names()}
    assert {cell.key() for cell in named(Request())} == keys
    assert len(named(Request())) == len(keys)
    asked = Request(cells=("gru", "lstm", "np", "gru"))  # np is an LSTM
    assert [cell.name for cell in named(asked)] == ["gru", "lstm"]


# -- what runs under the clock


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(1, 1, 1), (3, 5, 4), (33, 70, 19), (64, 128, 96)])
def test_the_own_product_multiplies(size: tuple[int, int, int], dtype: torch.dtype) -> None:
    m, n, k = size
    a, b = torch.randn(m, k, dtype=dtype), torch.randn(k, n, dtype=dtype)
    c = torch.full((m, n), math.nan, dtype=dtype)
    rates.Product(a, b, c)()
    torch.testing.assert_close(c, a @ b)


def test_every_library_multiplies_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    products = rates._products(torch.float32, 6, 9, 4)
    assert {"torch.mm", "cellgraph"} <= products.keys()
    if "oneDNN" in products:
        result = products["oneDNN"]()
        products["torch.mm"]()
        own = products["cellgraph"]
        assert isinstance(own, rates.Product)
        torch.testing.assert_close(result, own.held[2])
    assert "oneDNN" not in rates._products(torch.float64, 6, 9, 4)


def test_numpy_answers_with_seconds_and_its_end_is_an_error() -> None:
    with rates._numpy("float32") as numpy:
        ask = numpy(3, 4, 5)
        assert ask() > 0
        assert ask() > 0
    with (
        pytest.raises(rates.SearchError, match="numpy has ended"),
        rates._numpy("no such type") as numpy,
    ):
        numpy(3, 4, 5)()


@pytest.mark.parametrize("name", ["gru", "mut1", "lstm_peephole", "antisymmetric_rnn"])
def test_all_ways_through_a_layer_are_the_same(name: str) -> None:
    ways = (cells.NATIVE, cells.EAGER, cells.INTERPRETER, cells.LSTM)
    modules = cells.modules(cg.load(name), SMALL, torch.float64, ways, torch.Generator())
    x, weight = torch.randn(2, *SMALL, dtype=torch.float64)
    found = {}
    for way in ways[:3]:
        one = Pass(modules[way], x, weight, input_grad=True)
        one()  # a second time, to see that gradients do not add up
        y = one()
        found[way] = [y.detach(), one.x.grad, *(p.grad for p in one.parameters)]
    for way in ways[1:3]:
        torch.testing.assert_close(found[way], found[cells.NATIVE])
    assert isinstance(modules[cells.LSTM], torch.nn.LSTM)
    without = Pass(modules[cells.NATIVE], x, weight, input_grad=False)
    without()
    assert without.x.grad is None


def test_numbers_that_explode_are_noticed() -> None:
    for text, finite in (
        ("h' = exp(exp(exp(x + h + 5)))", False),
        ("h' = tanh(x + h + b)", True),
        ("h' = relu(x + h + b) * step(h)", True),
    ):
        cell = cg.parse(f"cell a(x, h)\n    {text}\n")
        (layer,) = cells.modules(
            cell, SMALL, torch.float32, [cells.NATIVE], torch.Generator()
        ).values()
        x, weight = torch.randn(2, *SMALL)
        assert Pass(layer, x, weight, input_grad=False).finite() is finite


@pytest.mark.parametrize("task", [Echo(), Stream(), Frames()], ids=lambda task: task.name)
@pytest.mark.parametrize("kind", [training.NativeStep, training.PlainStep])
def test_steps_learn(kind: Any, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = next(iter(task.train_batches(0)))
    step = kind(task, 0)
    losses: list[float] = []
    if kind is training.NativeStep:
        module, run = step.step.model, step.step.forward

        def note(batch: Batch) -> tuple[float, int]:
            nats, scored = run(batch)
            losses.append(nats / scored)
            return nats, scored

        monkeypatch.setattr(step.step, "forward", note)
    else:
        module, forward = step.head, torch.nn.functional.cross_entropy
        if task.loss == "bernoulli":
            forward = torch.nn.functional.binary_cross_entropy_with_logits

        def spy(logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
            losses.append(forward(logits, targets).item())
            return forward(logits, targets, reduction=reduction)

        monkeypatch.setattr(torch.nn.functional, forward.__name__, spy)
    for _ in range(40):
        step(batch)
    assert len(losses) == 40
    assert losses[-1] < 0.9 * losses[0]
    assert all(p.isfinite().all() for p in module.parameters())


def test_the_plain_step_goes_on_from_the_state_before() -> None:
    step, given = training.PlainStep(Stream(), 0), list[Any]()
    step.lstm.register_forward_pre_hook(lambda module, arguments: given.append(arguments[1]))
    first, second = list(Stream().eval_batches("valid"))[:2]
    for batch in (second, second, first):
        last = step.state
        step(batch)
    assert given[0] is given[2] is None
    assert last is not None
    assert all(not state.requires_grad for state in given[1])
    assert given[1][0].abs().max() > 0


def test_only_tasks_whose_data_are_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CELLSEARCH_DATA", raising=False)
    monkeypatch.setenv("CELLSEARCH_CACHE", str(tmp_path))
    found = training.names()
    assert found == ["memorisation", "arithmetic", "xml", "pydoc_char", "chorales"]
    assert set(found) < set(tasks.names())


def test_the_machine() -> None:
    found = machine.describe()
    assert found["torch"] == torch.__version__
    assert found["cpu"]
    assert found["threads"] == 1
    assert "\n" not in found["compiler"]


# -- the command


@pytest.mark.usefixtures("little")
def test_a_small_run_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--cells", "tanh_rnn,gru", "--shapes", "2,1,4", "3,2,5", "--mutants", "2", "--json"]
    status, out, err = run(capsys, *words)
    assert status == 0, err
    document = json.loads(out)
    assert document["version"] == kernels.VERSION
    assert document["request"]["cells"] == ["tanh_rnn", "gru"]
    assert document["request"]["shapes"] == [[2, 1, 4], [3, 2, 5]]
    assert document["machine"]["threads"] == 1

    found = {rate["library"] for rate in document["rates"]}
    assert {"torch.mm", "numpy", "cellgraph"} <= found
    assert len(document["rates"]) == 2 * len(found)
    assert document["best_rate"]["gflops"] == max(r["gflops"] for r in document["rates"])

    rows = document["cells"]
    assert [tuple(row["shape"]) for row in rows] == [(2, 1, 4)] * 4 + [(3, 2, 5)] * 4
    assert [row["mutant"] for row in rows] == [False, False, True, True] * 2
    assert [row["cell"] for row in rows[:2]] == ["tanh_rnn", "gru"]
    assert len({row["key"] for row in rows}) == 4
    for row in rows:
        assert row["finite"]
        more = set() if row["mutant"] else {"interpreter", "nn.LSTM"}
        assert set(row["ms"]) == {"native", "eager"} | more
        assert all(0 < row["least_ms"][way] <= ms for way, ms in row["ms"].items())
        for name, ratio in row["over_native"].items():
            assert ratio == pytest.approx(row["ms"][name] / row["ms"]["native"])
        assert (row["of_best"] is None) is (row["code_of_best"] is None) is row["mutant"]
        assert row["mutant"] or 0 < row["of_best"] < row["code_of_best"]
        assert row["rounds"] == 1
    gru = rows[1]
    assert gru["flops"] == product_flops(cg.load("gru"), Shape(2, 1, 4), input_grad=False)
    assert gru["gflops"]["native"] == pytest.approx(gru["flops"] / gru["ms"]["native"] / 1e6)
    assert "nn.LSTM" not in gru["gflops"]

    compiled = document["compile"]
    assert compiled["cells"] == compiled["cells_a_batch"] == 2
    assert 0 < compiled["median"] <= compiled["p90"]
    assert 0 < compiled["cached_median"] <= compiled["cached_p90"] < compiled["matrix_kernels"]
    (step,) = document["steps"]
    assert (step["task"], step["inputs"]) == ("memorisation", [10, 64])
    assert step["ratio"] == pytest.approx(step["native"] / step["plain"])

    (first, second) = document["summary"]["shapes"]
    assert (first["cells"], first["not_finite"]) == (4, 0)
    ratios = [row["over_native"]["eager"] for row in rows[4:]]
    assert second["eager_over_native"] == pytest.approx(math.prod(ratios) ** (1 / 4))
    assert (second["least"], second["largest"]) == (min(ratios), max(ratios))
    for target in document["summary"]["targets"]:
        assert (target["met"] is None) is (target["measured"] is None)
    assert "matrix rates" in err


@pytest.mark.usefixtures("little")
def test_a_small_run_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--cells", "lstm", "--shapes", "2,1,4", "--mutants", "1", "--parts", "rates,cells"]
    status, out, err = run(capsys, *words)
    assert status == 0, err
    assert "T 2, B 1, H 4" in out
    assert "best: " in out
    assert "mutants (1): eager / native" in out
    assert "nn.LSTM / lstm, least" in out
    assert not [line for line in out.splitlines() if line != line.rstrip()]
    assert "memorisation" not in out


@pytest.mark.usefixtures("little")
def test_other_types_and_gradients(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--cells", "gru", "--shapes", "2,1,4", "--mutants", "1", "--parts", "cells"]
    options = ["--dtype", "float64", "--input-grad", "--interpreter", "--json"]
    status, out, err = run(capsys, *words, *options)
    assert status == 0, err
    document = json.loads(out)
    assert [set(row["ms"]) for row in document["cells"]] == [
        {"native", "eager", "interpreter", "nn.LSTM"},
        {"native", "eager", "interpreter"},
    ]
    shape = Shape(2, 1, 4)
    flops = product_flops(cg.load("gru"), shape, input_grad=True)
    assert document["cells"][0]["flops"] == flops
    assert document["cells"][0]["of_best"] is document["best_rate"] is document["compile"] is None
    assert document["summary"]["targets"] == document["rates"] == document["steps"] == []


BAD = {
    "unknown cell": (["--cells", "gru,gruu"], "no cell named 'gruu' (did you mean gru?)"),
    "no cell": (["--cells", "gru,"], "expected names with commas"),
    "malformed shape": (["--shapes", "35,20"], "expected T,B,H such as 35,20,64"),
    "no size": (["--shapes", "35,20,64", "1,0,1"], "expected T,B,H such as 35,20,64"),
    "unknown type": (["--dtype", "float16"], "invalid choice: 'float16'"),
    "negative": (["--mutants", "-1"], "expected a whole number of at least 0"),
    "unknown part": (["--parts", "cells,speed"], "no part 'speed', expected some of rates, cells"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_clear_line(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    words, expected = BAD[case]
    status, _out, err = run(capsys, *words)
    assert status == 2
    assert expected in err
    assert err.count("\n") == 1


@pytest.mark.usefixtures("little")
@pytest.mark.parametrize("part", ["cells", "compile"])
def test_a_compiler_that_fails_is_one_clear_line(
    part: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("CC", "false")
    monkeypatch.setenv("CELLSEARCH_CACHE", str(tmp_path))
    words = ["--cells", "gru", "--shapes", "2,1,4", "--parts", part]
    status, out, err = run(capsys, *words)
    assert (status, out) == (2, "")
    assert "exit status 1" in err.splitlines()[-1]
    assert "Traceback" not in err


def test_ctrl_c(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cells, "measure", interrupted)
    status, out, err = run(capsys, "--parts", "cells")
    assert (status, out) == (130, "")
    assert "Traceback" not in err


# -- targets


def _findings(*rows: Row, **request: Any) -> kernels.Findings:
    return kernels.Findings(Request(**request), {}, cells=list(rows))


def _row(cell: str, hidden: int, ms: dict[str, float], of_best: float | None = None) -> Row:
    over = {way: of / ms["native"] for way, of in ms.items() if way != "native"}
    return Row(cell, cell, False, Shape(1, 1, hidden), 10, True, 3, ms, ms, over, of_best, of_best)


def _met(found: kernels.Findings) -> dict[str, bool | None]:
    return {target.what: target.met for target in summary.targets(found)}


def test_targets_say_whether_they_are_met() -> None:
    fast = {"native": 1.0, "eager": 5.0, "nn.LSTM": 1.3}
    good = _met(_findings(_row("lstm", 64, fast), _row("gru", 256, fast, 0.9)))
    assert set(good.values()) == {True, None}
    assert good["eager / native, all cells, H 128"] is None
    assert good["lstm and gru of the best rate, H >= 200, least"]
    assert good["nn.LSTM / lstm, geometric mean"]
    slow = {"native": 1.0, "eager": 0.9, "nn.LSTM": 0.9}
    rows = [_row("lstm", h, slow, 0.7) for h in (64, 128, 256)]
    bad = _met(_findings(_row("mut1", 64, fast), *rows))
    assert [what for what, met in bad.items() if met] == []
    assert [met for met in bad.values() if met is False] == [False] * 6
    assert _met(_findings(_row("lstm", 64, fast), dtype="float64")) == {}


def test_targets_of_builds_and_steps() -> None:
    found = _findings()
    assert set(_met(found).values()) == {None}
    quick, slow = Times((0.001, 0.002)), Times((0.3, 0.4))
    found.building = building.Building(1.0, slow, quick, quick, quick)
    found.steps = [training.Row("memorisation", (1, 2), 5, 1.0, 2.0, 0.5)]
    met = {what: met for what, met in _met(found).items() if met is not None}
    assert list(met.values()) == [False, True, True]
    found.steps = [training.Row("memorisation", (1, 2), 5, 1.0, 2.0, 0.95)]
    assert _met(found)["memorisation step / nn.LSTM's"] is False


def test_the_parser_needs_no_torch() -> None:
    code = "import sys, search.bench.request; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_what_is_measured_by_default() -> None:
    assert Request().shapes == SHAPES
    assert set(Request().parts) == set(PARTS)
    assert timing.Effort(1.0).least == 3
    assert [str(shape) for shape in SHAPES][:1] == ["T 35, B 20, H 64"]
