"""The op table in ONNX: a namespace with what `Op.eager(t, …)` calls on torch.

The column that computes, run on the symbols below, gives an expression of ONNX operators, of which
`onnx_nodes.py` makes nodes. Nothing here needs the package onnx.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace

#: The version of the operators: old enough for most runtimes, new enough for what is used here.
OPSET = 17


@dataclass(frozen=True, slots=True)
class Symbol:
    """A value of a graph, by its name; or an ONNX operator, by its type, over its operands.

    Arithmetic on it gives a larger expression. A number stands for a tensor of the shape ().
    """

    name: str
    operands: tuple[Symbol | float, ...] = ()
    attributes: Mapping[str, float] = field(default_factory=dict)

    def __add__(self, other: Symbol | float) -> Symbol:
        return Symbol("Add", (self, other))

    def __sub__(self, other: Symbol | float) -> Symbol:
        return Symbol("Sub", (self, other))

    def __mul__(self, other: Symbol | float) -> Symbol:
        return Symbol("Mul", (self, other))

    def __truediv__(self, other: Symbol | float) -> Symbol:
        return Symbol("Div", (self, other))

    def __neg__(self) -> Symbol:
        return Symbol("Neg", (self,))


def _of(operator: str) -> Callable[..., Symbol]:
    return lambda *operands: Symbol(operator, operands)


def _leaky_relu(a: Symbol, slope: float) -> Symbol:
    return Symbol("LeakyRelu", (a,), {"alpha": slope})


def _gelu(a: Symbol) -> Symbol:
    # ONNX has Gelu from opset 20 on.
    return a * (Symbol("Erf", (a * math.sqrt(0.5),)) * 0.5 + 0.5)


TORCH = SimpleNamespace(
    abs=_of("Abs"),
    cos=_of("Cos"),
    erf=_of("Erf"),
    exp=_of("Exp"),
    log=_of("Log"),
    maximum=_of("Max"),
    minimum=_of("Min"),
    relu=_of("Relu"),
    sigmoid=_of("Sigmoid"),
    sign=_of("Sign"),
    sin=_of("Sin"),
    sqrt=_of("Sqrt"),
    tanh=_of("Tanh"),
    nn=SimpleNamespace(
        functional=SimpleNamespace(
            gelu=_gelu,
            leaky_relu=_leaky_relu,
            relu6=lambda a: Symbol("Clip", (a, 0.0, 6.0)),
            silu=lambda a: a * Symbol("Sigmoid", (a,)),
            softplus=_of("Softplus"),
        )
    ),
)
