"""Coordinates for boxes and arrows: layers from top to bottom, few crossings, straight lines.

After Sugiyama, Tagawa & Toda 1981 (Methods for visual understanding of hierarchical system
structures, IEEE Transactions on Systems, Man, and Cybernetics 11), with one difference: all arrows
of a box share one line down through the layers, from which they leave where they are needed.
Deterministic, and pure arithmetic: the same drawing is at the same place everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from cellgraph.errors import CellError
from cellgraph.exporters.drawing import Drawing

#: Units of length; a character of a label is 7.2 wide.
CHARACTER, PADDING, HEIGHT, STEP, GAP = 7.2, 9.0, 28.0, 62.0, 16.0
#: Lines through a layer stand closer than boxes, and closer to them.
LINE_GAP = 12.0
MOST_POINTS = 20_000  #: boxes, and lines through layers
THOROUGH = 1_500  #: up to so many points the search for few crossings is thorough

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Line:
    """A piece of a line, from the bottom of something to the top of something one layer below.
    `head`: the number of the box that it points to, None for one that goes on."""

    start: Point
    end: Point
    head: int | None
    letter: str = ""


@dataclass(frozen=True, slots=True)
class Layout:
    """Centres and widths of the boxes of a drawing, and the lines between them.

    `passes` are the vertical pieces of lines that go through a layer, from top to bottom; `forks`
    the places where a line through a layer divides.
    """

    width: float
    height: float
    centres: tuple[Point, ...]
    widths: tuple[float, ...]
    lines: tuple[Line, ...]
    passes: tuple[tuple[Point, Point], ...]
    forks: tuple[Point, ...]


def layout(drawing: Drawing) -> Layout:
    """Where everything stands. Raises `CellError` for a cell that is too large for a picture."""
    return _Layout(drawing).made()


class _Layout:
    """Points: the boxes by their numbers, then one for every layer that a line goes through."""

    def __init__(self, drawing: Drawing) -> None:
        self.drawing = drawing
        self.layer = _layers(drawing)
        boxes = len(self.layer)
        self.above: list[list[int]] = [[] for _ in range(boxes)]
        self.below: list[list[int]] = [[] for _ in range(boxes)]
        self.letters: dict[tuple[int, int], str] = {}  # (point above, box) -> letter
        self._lines()
        self.widths = [CHARACTER * len(b.short()) + 2 * PADDING for b in drawing.boxes]
        self.widths += [0.0] * (len(self.layer) - boxes)
        self.boxes = boxes

    def _lines(self) -> None:
        """One line for each box, as far down as anything that reads it."""
        readers: dict[int, list[int]] = {}
        for box, about in enumerate(self.drawing.boxes):
            for source in about.sources:
                readers.setdefault(source, []).append(box)
        for source in range(len(self.drawing.boxes)):
            last = max((self.layer[box] for box in readers.get(source, ())), default=0)
            at = {self.layer[source]: source}
            for layer in range(self.layer[source] + 1, last):
                point = at[layer] = len(self.layer)
                if point >= MOST_POINTS:
                    raise CellError(
                        f"cell {self.drawing.name} is too large for a picture, expected at most "
                        f"{MOST_POINTS} boxes and lines through layers"
                    )
                self.layer.append(layer)
                self.above.append([])
                self.below.append([])
                self._connect(at[layer - 1], point)
            for box in readers.get(source, ()):
                point = at[self.layer[box] - 1]
                self._connect(point, box)
                about = self.drawing.boxes[box]
                if about.lettered:
                    self.letters[point, box] = about.marks[about.sources.index(source)]

    def _connect(self, point: int, box: int) -> None:
        self.below[point].append(box)
        self.above[box].append(point)

    def made(self) -> Layout:
        rows = _ordered(self.layer, self.above, self.below)
        x = _placed(rows, self.widths, self.above, self.below)
        left = min(x[p] - self.widths[p] / 2 for p in range(len(x)))
        centre = [
            (round(x[p] - left + PADDING, 1), STEP * self.layer[p] + HEIGHT / 2 + PADDING)
            for p in range(len(x))
        ]
        right = max(c[0] + w / 2 for c, w in zip(centre, self.widths, strict=True))
        through = range(self.boxes, len(x))
        half = HEIGHT / 2
        return Layout(
            round(right + PADDING, 1),
            max(y for _, y in centre) + half + PADDING,
            tuple(centre[: self.boxes]),
            tuple(self.widths[: self.boxes]),
            tuple(self._pieces(centre)),
            tuple(((centre[p][0], centre[p][1] - half), (centre[p][0], centre[p][1] + half))
                  for p in through),
            tuple(
                (centre[p][0], centre[p][1] + half) for p in through if len(self.below[p]) > 1
            ),
        )  # fmt: skip

    def _pieces(self, centre: Sequence[Point]) -> list[Line]:
        lines = []
        for point, above in enumerate(self.above):
            entering = sorted(above, key=lambda p: (centre[p][0], p))
            room = max(self.widths[point] - 2 * PADDING, 0.0)
            apart = min(18.0, room / max(len(entering) - 1, 1))
            first = centre[point][0] - apart * (len(entering) - 1) / 2
            for k, start in enumerate(entering):
                end = (round(first + k * apart, 1), centre[point][1] - HEIGHT / 2)
                lines.append(
                    Line(
                        (centre[start][0], centre[start][1] + HEIGHT / 2),
                        end,
                        point if point < self.boxes else None,
                        self.letters.get((start, point), ""),
                    )
                )
        return lines


# -- layers ----------------------------------------------------------------------------------------


def _layers(drawing: Drawing) -> list[int]:
    """The layer of every box: below all that it reads, results in the last, and wherever else
    lines are short."""
    boxes = drawing.boxes
    readers: list[list[int]] = [[] for _ in boxes]
    layer = [0] * len(boxes)
    for box, about in enumerate(boxes):
        layer[box] = max((layer[source] + 1 for source in about.sources), default=0)
        for source in about.sources:
            readers[source].append(box)
    results = [box for box, about in enumerate(boxes) if about.kind in ("next", "output")]
    last = max(layer[box] for box in results)
    for box in results:
        layer[box] = last
    fixed = {*results, *(b for b, about in enumerate(boxes) if about.kind in ("input", "state"))}
    for _ in range(4):  # what moves makes room for others; a few rounds settle it
        before = list(layer)
        for box in reversed(range(len(boxes))):
            if box not in fixed:
                layer[box] = _best_layer(box, boxes[box].sources, readers, layer)
        if layer == before:
            break
    return layer


def _best_layer(
    box: int, sources: Sequence[int], readers: Sequence[Sequence[int]], layer: list[int]
) -> int:
    """Where the lines to and from a box are shortest; of equals the place next to its readers for
    what reads only inputs and states, and the place next to what it reads for the rest."""
    low = max((layer[source] + 1 for source in sources), default=0)
    high = min((layer[reader] - 1 for reader in readers[box]), default=low)
    others = [
        max((layer[r] for r in readers[source] if r != box), default=layer[source])
        for source in sources
    ]
    down = all(layer[source] == 0 for source in sources)

    def cost(at: int) -> tuple[int, int]:
        return sum(max(at - other, 0) for other in others) - at, -at if down else at

    return min(range(low, high + 1), key=cost)


# -- order within layers ---------------------------------------------------------------------------


def _ordered(
    layer: Sequence[int], above: Sequence[Sequence[int]], below: Sequence[Sequence[int]]
) -> list[list[int]]:
    """The points of each layer from left to right, with few crossings."""
    rows: list[list[int]] = [[] for _ in range(max(layer) + 1)]
    for point, at in enumerate(layer):
        rows[at].append(point)
    thorough = len(layer) <= THOROUGH
    best, fewest = [list(row) for row in rows], _crossings(rows, below)
    for sweep in range(24 if thorough else 6):
        down = sweep % 2 == 0
        near = above if down else below
        place = {point: i for row in rows for i, point in enumerate(row)}
        for row in rows if down else reversed(rows):
            _sort(row, place, near)
        if thorough:
            _exchange(rows, above, below)
        crossings = _crossings(rows, below)
        if crossings < fewest:
            best, fewest = [list(row) for row in rows], crossings
    return best


def _sort(row: list[int], place: dict[int, int], near: Sequence[Sequence[int]]) -> None:
    """By the mean place of the neighbours; a point without any stays where it is."""
    mean = {p: sum(place[n] for n in near[p]) / len(near[p]) for p in row if near[p]}
    moving = iter(sorted(mean, key=lambda p: (mean[p], place[p])))
    row[:] = [next(moving) if point in mean else point for point in row]
    place.update({point: i for i, point in enumerate(row)})


def _exchange(
    rows: list[list[int]], above: Sequence[Sequence[int]], below: Sequence[Sequence[int]]
) -> None:
    """Neighbours change places while that takes away crossings."""
    place = {point: i for row in rows for i, point in enumerate(row)}
    for row in rows:
        for _ in range(4):
            changed = False
            for i in range(len(row) - 1):
                a, b = row[i], row[i + 1]
                gain = sum(
                    _between(place, near[a], near[b]) - _between(place, near[b], near[a])
                    for near in (above, below)
                )
                if gain > 0:
                    row[i], row[i + 1] = b, a
                    place[a], place[b] = i + 1, i
                    changed = True
            if not changed:
                break


def _between(place: Mapping[int, int], left: Sequence[int], right: Sequence[int]) -> int:
    """Crossings of the lines of two neighbours, the one with `left` standing left."""
    return sum(place[a] > place[b] for a in left for b in right)


def _crossings(rows: Sequence[Sequence[int]], below: Sequence[Sequence[int]]) -> int:
    """Pairs of lines that cross, counted by insertion into a binary indexed tree (Barth, Jünger &
    Mutzel 2002, Simple and efficient bilayer cross counting)."""
    total = 0
    for row, lower in pairwise(rows):
        place = {point: i for i, point in enumerate(lower)}
        tree, entered = [0] * (len(lower) + 1), 0
        for point in row:
            ends = sorted(place[end] for end in below[point])
            for end in ends:
                at, before = end + 1, 0
                while at:
                    before += tree[at]
                    at &= at - 1
                total += entered - before
            for end in ends:
                at = end + 1
                while at <= len(lower):
                    tree[at] += 1
                    at += at & -at
            entered += len(ends)
    return total


# -- places within rows ----------------------------------------------------------------------------


def _placed(
    rows: Sequence[Sequence[int]],
    widths: Sequence[float],
    above: Sequence[Sequence[int]],
    below: Sequence[Sequence[int]],
) -> list[float]:
    """The horizontal place of every point: as near to its neighbours as the order allows."""
    through = [not width for width in widths]
    x = [0.0] * len(widths)
    offsets = []
    for row in rows:
        at, places = 0.0, []
        for i, point in enumerate(row):
            if i:
                gap = LINE_GAP if through[point] or through[row[i - 1]] else GAP
                at += (widths[row[i - 1]] + widths[point]) / 2 + gap
            places.append(at)
        middle = at / 2
        for point, place in zip(row, places, strict=True):
            x[point] = place - middle
        offsets.append(places)
    for sweep in range(30):
        down = sweep % 2 == 0
        pairs = list(zip(rows, offsets, strict=True))
        for row, places in pairs if down else reversed(pairs):
            wanted, weights = [], []
            for point in row:
                near = [*above[point], *below[point]] if sweep > 1 else above[point]
                # Lines through layers want to be straight above all.
                share = [30.0 if through[point] and through[n] else 1.0 for n in near]
                mean = sum(s * x[n] for s, n in zip(share, near, strict=True))
                wanted.append(mean / sum(share) if near else x[point])
                weights.append(sum(share) if near else 0.1)
            for point, place in zip(row, _separated(wanted, weights, places), strict=True):
                x[point] = place
    return x


def _separated(
    wanted: Sequence[float], weights: Sequence[float], offsets: Sequence[float]
) -> list[float]:
    """The places nearest to those wanted, in weighted squares, that are as far apart as the offsets
    say: isotonic regression by pooling of adjacent violators."""
    blocks: list[tuple[float, float, int]] = []  # mean, weight, how many
    for want, weight, offset in zip(wanted, weights, offsets, strict=True):
        mean, total, count = want - offset, weight, 1
        while blocks and blocks[-1][0] > mean:
            other, heavy, many = blocks.pop()
            mean = (other * heavy + mean * total) / (heavy + total)
            total, count = total + heavy, count + many
        blocks.append((mean, total, count))
    means = [mean for mean, _, count in blocks for _ in range(count)]
    return [mean + offset for mean, offset in zip(means, offsets, strict=True)]
