"""How numbers and foreign text are written, the same on the terminal and on the page.

Knows nothing of runs.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from typing import TypeGuard

#: Names of metrics as a heading; an accuracy is printed in percent.
HEADINGS = {
    "accuracy": "accuracy, %",
    "perplexity": "perplexity",
    "bits_per_character": "bits/char",
    "nll": "nats/frame",
}
BLOCKS = "▁▂▃▄▅▆▇█"
NONE = "–"


def present(value: float | None) -> TypeGuard[float]:
    """A finite number; what is missing is None in JSON and NaN in a data frame."""
    return value is not None and math.isfinite(value)


def heading(metric: str) -> str:
    """The name of a metric with its unit."""
    return HEADINGS.get(metric, metric.replace("_", " "))


def quantity(metric: str, value: float | None) -> str:
    """A metric in the unit of `heading`; a dash where there is none."""
    if not present(value):
        return NONE
    shown = plotted(metric, value)
    return f"{shown:.2f}" if metric == "accuracy" else f"{shown:.4g}"


def labelled(metric: str, value: float | None) -> str:
    """A metric within a sentence: accuracy 87.41 %, 8.4 nats/frame."""
    number, name = quantity(metric, value), heading(metric)
    if metric == "accuracy":
        return f"accuracy {number} %"
    return f"{number} {name}" if "/" in name else f"{name} {number}"


def plotted(metric: str, value: float) -> float:
    """The number that `quantity` prints."""
    return 100 * value if metric == "accuracy" else value


def decimal(value: float | None, digits: int = 4) -> str:
    return f"{value:.{digits}f}" if present(value) else NONE


def whole(value: float | None) -> str:
    """With thousands apart: 12,345."""
    return f"{int(value):,}" if present(value) else NONE


def duration(seconds: float) -> str:
    """12.3 s, 3 min 05 s or 2 h 07 min."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


def counts(named: Mapping[str, int]) -> str:
    """380 ok, 20 diverged."""
    return ", ".join(f"{count:,} {name}" for name, count in named.items()) or "none"


def settings(setting: Mapping[str, object]) -> str:
    """lr=0.01 scale=1 …, numbers in their shortest form."""
    return " ".join(
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in setting.items()
    )


def clean(text: object) -> str:
    """One line without control characters: a journal must not drive a terminal or forge a line."""
    return "".join(_harmless(character) for character in str(text))


def _harmless(character: str) -> str:
    if character in "\t\r\n":
        return " "
    hidden = unicodedata.category(character)[0] == "C"
    return "\N{REPLACEMENT CHARACTER}" if hidden else character


def sparkline(values: Sequence[float | None], width: int = 32) -> str:
    """A curve in one line of text; its least value is the lowest block, a missing one a dot.

    Longer curves are thinned out to `width` points, the first and the last among them.
    """
    if len(values) > width:
        values = [values[round(i * (len(values) - 1) / (width - 1))] for i in range(width)]
    known = [v for v in values if present(v)]
    if not known:
        return "·" * len(values)
    low, span = min(known), (max(known) - min(known)) or 1.0
    return "".join(
        BLOCKS[round((v - low) / span * (len(BLOCKS) - 1))] if present(v) else "·" for v in values
    )
