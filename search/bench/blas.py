"""numpy's matrix product with one thread, in a process of its own: a BLAS reads the number of its
threads from the environment, when it is loaded. Run as a file: it imports numpy and nothing of
ours.

Answers every line `m n k` with the seconds of one product of m × k and k × n numbers.
"""

from __future__ import annotations

import sys
import time

import numpy as np


def main() -> None:
    """Until the input ends."""
    operands, rng = {}, np.random.default_rng(0)
    for line in sys.stdin:
        m, n, k = map(int, line.split())
        if line not in operands:
            a, b = (rng.standard_normal(size).astype(sys.argv[1]) for size in ((m, k), (k, n)))
            operands[line] = a, b, np.empty((m, n), sys.argv[1])
        a, b, c = operands[line]
        begin = time.perf_counter()
        np.matmul(a, b, out=c)
        print(time.perf_counter() - begin, flush=True)


if __name__ == "__main__":
    main()
