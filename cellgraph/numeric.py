"""The op table on numpy arrays: a namespace with what `Op.eager(t, …)` calls on torch.

For constant folding and fingerprints, where cells are evaluated once on a few numbers and the
start of every torch call would be most of the time.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np

from cellgraph.ops import OPS


class Values(np.ndarray[Any, Any]):
    """An array of float64 with the one method of tensors that the table uses."""

    def to(self, dtype: np.dtype[Any]) -> Values:
        return self.astype(dtype).view(Values)


def values(array: Any) -> Values:
    """Numbers or an array as `Values`, of the same shape."""
    return np.asarray(array, dtype=np.float64).view(Values)


def _sigmoid(a: Any) -> Any:
    return 1 / (1 + np.exp(-a))


def _sign(a: Any) -> Any:
    return np.where(a > 0, 1.0, np.where(a < 0, -1.0, 0.0)).view(Values)  # 0 for NaN, as in torch


def _softplus(a: Any) -> Any:
    return np.where(a > 20, a, np.log1p(np.exp(a))).view(Values)


def _leaky_relu(a: Any, slope: float) -> Any:
    return np.where(a > 0, a, slope * a).view(Values)


def _gelu(a: Any) -> Any:
    return a * (0.5 + 0.5 * _erf(a * math.sqrt(0.5)))


_erf = np.vectorize(math.erf, otypes=[float])

NUMPY = SimpleNamespace(
    abs=np.abs,
    cos=np.cos,
    erf=lambda a: _erf(a).view(Values),
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
        return float(OPS[op].eager(NUMPY, *(values([a]) for a in args))[0])
