"""Which backend computes a call: "auto" is native where that can be, eager elsewhere, and says why;
"native" is an error there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import cellgraph as cg
from cellgraph import backends, eager, scan
from cellgraph.kernels import compiler, native
from cellgraph.layer import CellLayer
from tests.cellgraph.native_cells import error
from tests.cellgraph.test_native_layer import flat

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _silent_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has warned of nothing yet."""
    monkeypatch.setattr(backends, "_said", set())


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The backends of the calls, in order."""
    calls: list[str] = []
    for name, module in (("native", native), ("scan", scan), ("eager", eager)):
        real = module.Runner.__call__

        def call(self: Any, *args: Any, _name: str = name, _real: Any = real) -> Any:
            calls.append(_name)
            return _real(self, *args)

        monkeypatch.setattr(module.Runner, "__call__", call)
    return calls


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "command", lambda: None)


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler that refuses all text, and an empty cache."""
    script = tmp_path / "brokencc"
    script.write_text("#!/bin/sh\necho 'error: it is Monday' >&2\nexit 3\n")
    script.chmod(0o700)
    monkeypatch.setenv("CC", str(script))
    monkeypatch.setenv("CELLSEARCH_CACHE", str(tmp_path / "cache"))


def same(name: str, **options: Any) -> tuple[CellLayer, CellLayer]:
    """The layer that is asked for, and an eager one with the same parameters."""
    layers = cg.compile(name, 3, 4, **options), cg.compile(name, 3, 4, backend="eager")
    layers[1].load_state_dict(layers[0].state_dict())
    return layers[0], layers[1].to(next(layers[0].parameters()).dtype)


# -- auto -----------------------------------------------------------------------------------------


def test_auto_is_the_default_and_native_where_it_can_be(used: list[str]) -> None:
    layer = cg.compile("gru", 3, 4, 2, bidirectional=True)
    assert layer.backend == "auto"
    assert list(backends.BACKENDS) == ["auto", "native", "scan", "eager"]
    for dtype in (torch.float32, torch.float64):
        layer.to(dtype)(torch.randn(5, 2, 3, dtype=dtype))
    assert used == ["native"] * 8
    assert layer.fallback is None


@pytest.mark.usefixtures("no_compiler")
def test_auto_without_a_compiler(used: list[str]) -> None:
    layer, other = same("gru")
    x = torch.randn(5, 2, 3)
    with pytest.warns(RuntimeWarning, match="torch operations.*no C compiler.*pip install ziglang"):
        y, _ = layer(x)
    assert "no C compiler found; install gcc or clang" in (layer.fallback or "")
    for again in (layer, cg.compile("lstm", 3, 4)):  # no second warning: that would be an error
        again(x)
    assert used == ["eager"] * 3
    assert error([y], [other(x)[0]]) == 0


def test_a_process_without_a_compiler_warns_once(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['ziglang'] = None\n"  # the package, where a developer has it
        "import torch, cellgraph as cg\n"
        "for name in ('lstm', 'gru', 'lstm'):\n"
        "    layer = cg.compile(name, 3, 4)\n"
        "    for _ in range(2): layer(torch.zeros(2, 1, 3))[0].sum().backward()\n"
        "    print(layer.fallback)\n"
    )
    kept = {k: v for k, v in os.environ.items() if k not in ("CC", "PATH")}
    environment = kept | {"PATH": str(tmp_path), "CELLSEARCH_CACHE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr.count("RuntimeWarning") == 1
    assert compiler.how_to_get_one() in done.stderr
    assert done.stdout == f"no C compiler found; {compiler.how_to_get_one()}\n" * 3


@pytest.mark.usefixtures("broken")
def test_auto_with_a_compiler_that_fails(used: list[str]) -> None:
    cell = cg.parse("cell odd(x, h)\n h' = tanh(W @ x) + sin(sin(U @ h))")
    layer = cg.compile(cell, 3, 4)
    x = torch.randn(5, 2, 3)
    with pytest.warns(RuntimeWarning, match="it is Monday"):
        layer(x)
    assert "brokencc: exit status 3: error: it is Monday" in (layer.fallback or "")
    assert "\n" not in (layer.fallback or "")
    layer(x)  # it is not asked again
    assert used == ["eager", "eager"]


def test_auto_goes_on_where_kernels_are_loaded(
    used: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = cg.compile("gru", 3, 4)
    layer(torch.randn(5, 2, 3))
    monkeypatch.setattr(compiler, "command", lambda: None)
    layer(torch.randn(5, 2, 3))
    assert used == ["native", "native"]
    with pytest.warns(RuntimeWarning):
        cg.compile("gru", 3, 4)(torch.randn(5, 2, 3))
    assert used[2:] == ["eager"]


@pytest.mark.usefixtures("no_compiler")
def test_auto_without_a_compiler_needs_no_loop_where_the_cell_has_none(used: list[str]) -> None:
    layer, other = same("min_gru")
    x = torch.randn(50, 2, 3)
    with pytest.warns(RuntimeWarning, match="torch operations"):
        y, last = layer(x)
    wanted, end = other(x)
    assert error([y, last], [wanted, end]) < 1e-5
    assert used == ["scan", "eager"]


def test_auto_scans_what_native_code_cannot_run(used: list[str]) -> None:
    layer, other = same("min_gru")
    x = torch.randn(50, 2, 3)
    layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(layer(x)[0], other(x)[0], rtol=0.1, atol=0.05)
    assert used == ["native", "scan", "eager"]
    del used[:]
    layer(torch.zeros(50, 0, 3))  # no rows
    weights = torch.func.functional_call  # one that looks on at every operation
    torch.func.grad(lambda v: weights(layer, {}, (v,))[0].sum())(x)
    assert used == ["eager", "eager"]


# -- calls that are not for native code -----------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_short_types(dtype: torch.dtype, used: list[str]) -> None:
    x = torch.randn(5, 2, 3).to(dtype)
    layer, other = same("gru", dtype=dtype)
    assert error([layer(x)[0]], [other(x)[0]]) == 0
    assert used == ["eager", "eager"]
    assert layer.fallback is None  # a float32 call may come
    native_layer = cg.compile("gru", 3, 4, backend="native", dtype=dtype)
    message = f'cannot run with {dtype}, expected backend="eager"'
    with pytest.raises(cg.CellError, match=message):
        native_layer(x)


def test_autocast(used: list[str]) -> None:
    layer, other = same("gru")
    x = torch.randn(5, 2, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert error([layer(x)[0]], [other(x)[0]]) == 0
        with pytest.raises(cg.CellError, match='under autocast, expected backend="eager"'):
            cg.compile("gru", 3, 4, backend="native")(x)
    assert used == ["eager", "eager"]
    layer(x)
    assert used[2:] == ["native"]


def test_no_rows(used: list[str]) -> None:
    layer, other = same("lstm", num_layers=1)
    x = torch.zeros(5, 0, 3, requires_grad=True)
    for found, wanted in zip(flat(layer(x)), flat(other(x)), strict=True):
        assert found.shape == wanted.shape
    layer(x)[0].sum().backward()
    assert x.grad is not None
    assert set(used) == {"eager"}
    with pytest.raises(cg.CellError, match='without rows, expected backend="eager"'):
        cg.compile("lstm", 3, 4, backend="native")(x)


@pytest.mark.parametrize("tracer", ["torch.compiler.is_compiling", "torch.jit.is_tracing"])
def test_a_caller_that_is_traced(
    tracer: str, used: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = cg.compile("gru", 3, 4)
    x = torch.randn(5, 2, 3)
    monkeypatch.setattr(tracer, lambda: True)
    layer(x)
    with pytest.raises(cg.CellError, match="while its caller is traced"):
        cg.compile("gru", 3, 4, backend="native")(x)
    assert used == ["eager"]


def test_meta_tensors(used: list[str]) -> None:
    x = torch.zeros(5, 2, 3, device="meta")
    assert cg.compile("gru", 3, 4, device="meta")(x)[0].shape == (5, 2, 4)
    assert used == ["eager"]
    with pytest.raises(cg.CellError, match='on meta, expected backend="eager"'):
        cg.compile("gru", 3, 4, backend="native", device="meta")(x)


# -- native ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_compiler")
def test_native_without_a_compiler() -> None:
    layer = cg.compile("gru", 3, 4, backend="native")
    with pytest.raises(cg.CellError, match="cannot be built: no C compiler found; install gcc"):
        layer(torch.zeros(5, 2, 3))


@pytest.mark.usefixtures("broken")
def test_native_with_a_compiler_that_fails() -> None:
    cell = cg.parse("cell odd(x, h)\n h' = tanh(W @ x) + cos(sin(U @ h))")
    layer = cg.compile(cell, 3, 4, backend="native")
    with pytest.raises(cg.CellError, match=r"cannot be built: .*it is Monday"):
        layer(torch.zeros(5, 2, 3))


def test_a_layer_changes_its_backend() -> None:
    layer = cg.compile("gru", 3, 4)
    x = torch.randn(5, 2, 3)
    y, _ = layer(x)
    layer.run = backends.BACKENDS["eager"](layer.cell)
    assert error([y], [layer(x)[0]]) < 1e-6


# -- types that do not go together ----------------------------------------------------------------

BACKENDS = pytest.mark.parametrize("backend", backends.BACKENDS)


@BACKENDS
@pytest.mark.parametrize("grad", [True, False])
def test_x_of_another_type(backend: str, grad: bool) -> None:
    layer = cg.compile("t_gru" if backend == "scan" else "lstm", 3, 4, backend=backend)
    x = torch.zeros(5, 2, 3, dtype=torch.float64, requires_grad=grad)
    with pytest.raises(cg.CellError, match=r"x is torch.float64, the layer torch.float32"):
        layer(x)
    with pytest.raises(cg.CellError, match=r"x is torch.int64, the layer torch.float32"):
        layer(torch.zeros(5, 2, 3, dtype=torch.int64))


@BACKENDS
def test_a_state_of_another_type(backend: str) -> None:
    cell, second = ("t_gru", "p") if backend == "scan" else ("lstm", "c")
    layer = cg.compile(cell, 3, 4, backend=backend)
    x, h = torch.zeros(5, 2, 3), torch.zeros(1, 2, 4)
    message = f"state {second} is torch.float64, x torch.float32, expected equal types"
    with pytest.raises(cg.CellError, match=message):
        layer(x, (h, h.double()))
    with pytest.raises(cg.CellError, match=message):
        layer.lookup(x[0], torch.zeros(5, 2, dtype=torch.int64), (h, h.double()))


@pytest.mark.parametrize("backend", ["auto", "native"])
def test_parameters_that_do_not_fit(backend: str) -> None:
    """Nothing is read through an address that is not what it should be."""
    x = torch.zeros(5, 2, 3)
    wrong: dict[str, Tensor] = {
        "U_i": torch.zeros(4, 4, dtype=torch.float64),
        "W_o": torch.zeros(2, 2),
        "b_f": torch.zeros(3),
        "U_g": torch.zeros(4, 4, device="meta"),
    }
    for name, value in wrong.items():
        layer = cg.compile("lstm", 3, 4, backend=backend)
        setattr(layer.cells[0], name, torch.nn.Parameter(value))
        with pytest.raises(cg.CellError, match=r"a tensor of the cell is .*, expected"):
            layer(x)
    stack = cg.compile("lstm", 3, 4, 2, backend=backend)
    stack.cells[1].double()
    with pytest.raises(cg.CellError, match=r"a tensor of the cell is torch.float64.*, expected"):
        stack(x)


def test_types_mix_under_autocast() -> None:
    layer = cg.compile("gru", 3, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, _ = layer(torch.zeros(5, 2, 3, dtype=torch.bfloat16), torch.zeros(1, 2, 4))
    assert y.isfinite().all()
