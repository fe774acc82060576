"""The op table on numpy arrays: a namespace with what `Op.eager(t, …)` calls on torch.

For constant folding and fingerprints, where cells are evaluated once on a few numbers and the
start of every torch call would be most of the time. Arrays are of float64.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np

from cellgraph.ops import OPS


def _sigmoid(a: Any) -> Any:
    below = np.exp(-a)
    below += 1.0
    return 1.0 / below


def _sign(a: Any) -> Any:
    return np.where(a > 0, 1.0, np.where(a < 0, -1.0, 0.0))  # 0 for NaN, as in torch


def _softplus(a: Any) -> Any:
    return np.where(a > 20, a, np.log1p(np.exp(a)))


def _leaky_relu(a: Any, slope: float) -> Any:
    return np.where(a > 0, a, slope * a)


_objects = np.frompyfunc(math.erf, 1, 1)


def _erf(a: Any) -> Any:
    return _objects(a).astype(np.float64)


def _gelu(a: Any) -> Any:
    return a * (0.5 + 0.5 * _erf(a * math.sqrt(0.5)))


NUMPY = SimpleNamespace(
    abs=np.abs,
    cos=np.cos,
    erf=_erf,
    exp=np.exp,
    log=np.log,
    maximum=np.maximum,
    minimum=np.minimum,
    relu=lambda a: np.maximum(a, 0.0),
    sigmoid=_sigmoid,
    sign=_sign,
    sin=np.sin,
    sqrt=np.sqrt,
    tanh=np.tanh,
    nn=SimpleNamespace(
        functional=SimpleNamespace(
            gelu=_gelu,
            leaky_relu=_leaky_relu,
            relu6=lambda a: np.minimum(np.maximum(a, 0.0), 6.0),
            silu=lambda a: a * _sigmoid(a),
            softplus=_softplus,
        )
    ),
)


def number(op: str, *args: float) -> float:
    """The op of numbers, as an array of float64 would have it: NaN and infinity, never an error."""
    with np.errstate(all="ignore"):
        return float(OPS[op].eager(NUMPY, *[np.array([a], dtype=np.float64) for a in args])[0])
