"""What measurements under a few seeds allow to say: intervals, paired tests, many tests at once.

Numbers in, numbers out; knows nothing of cells. SciPy is imported when it is needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

#: Differences that vary less than this share of the values themselves are equal but for rounding.
ROUNDING = 1e-12


def interval(values: Sequence[float], level: float) -> float:
    """Half the width of the two-sided confidence interval of the mean: t · s / √n, with the
    quantile of Student's t for n - 1 degrees of freedom.

    Exact when the values are normal and independent. values: at least two.
    """
    from scipy.special import stdtrit

    n = len(values)
    quantile = float(stdtrit(n - 1, 0.5 + level / 2))
    return quantile * stdev(values) / math.sqrt(n)


def paired(first: Sequence[float], second: Sequence[float]) -> float:
    """Two-sided p of the paired t-test: do the differences have the mean 0?

    Not Wilcoxon's signed ranks, which assume less: five pairs have 2⁵ patterns of signs, so their
    least p is 2/32 = 0.0625, and no result of five seeds, however clear, would ever count. With m
    tests behind Holm's correction it takes 1 + log2(m / 0.05) pairs, 13 for a hundred tests. The
    t-test assumes that differences are normal, or nearly so, as means over thousands of predictions
    are.

    Where the differences do not vary there is nothing to estimate their spread from. If they are
    all 0 then p is 1. If they are all equal to another number, p is that of the sign test, 2¹⁻ⁿ,
    which holds whatever they are distributed like.

    first, second: values of the same seeds in the same order, at least two.
    """
    from scipy.special import stdtr

    differences = [a - b for a, b in zip(first, second, strict=True)]
    n, mean, spread = len(differences), fmean(differences), stdev(differences)
    rounding = ROUNDING * max(map(abs, (*first, *second)))
    if spread <= rounding:
        return 1.0 if abs(mean) <= rounding else 2.0 ** (1 - n)
    return float(2 * stdtr(n - 1, -abs(mean) / (spread / math.sqrt(n))))


def holm(values: Sequence[float]) -> list[float]:
    """The p of several tests, adjusted so that those up to α can all be claimed: with probability
    1 - α none of them is wrong, however the tests depend on each other (Holm 1979,
    https://www.jstor.org/stable/4615733).

    The smallest of m is multiplied by m, the next by m - 1, and so on; none falls below the one
    before, none exceeds 1.
    """
    order = sorted(range(len(values)), key=lambda i: values[i])
    adjusted = [1.0] * len(values)
    least = 0.0
    for rank, index in enumerate(order):
        least = max(least, min(1.0, (len(values) - rank) * values[index]))
        adjusted[index] = least
    return adjusted
