"""A run as two Parquet files, for programs: candidates.parquet and curves.parquet.

`CANDIDATES`, `PER_STAGE` and `CURVES` are their columns. Unit and meaning of each also stand in the
files, as metadata of the column; the file's own metadata have cellsearch.schema_version,
cellsearch.run and cellsearch.metrics (a JSON mapping from stages to what the search compares).
Files are written in pieces, so that a hundred thousand candidates need little more memory than the
run itself. Numbers are search scores, see `reports.collect`.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reports import frames
from reports.collect import Run
from search.errors import SearchError

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]

VERSION = "1"  #: of the columns; in the files' metadata as "schema_version"
CANDIDATES_FILE, CURVES_FILE = "candidates.parquet", "curves.parquet"
CANDIDATES_IN_A_PIECE, POINTS_IN_A_PIECE = 10_000, 100_000


@dataclass(frozen=True)
class Column:
    """type: the name of an Arrow type. A column that is not `required` has nulls."""

    name: str
    type: str
    unit: str
    meaning: str
    required: bool = False


CANDIDATES = (
    Column("candidate", "int64", "", "number of the proposal, from 0, in the order made", True),
    Column("key", "string", "", "canonical key of its cell; equal cells have equal keys", True),
    Column("name", "string", "", "name of the cell", True),
    Column("origin", "string", "", "seed, or how it was made from its parents", True),
    Column("parents", "list<int64>", "", "the candidates that it was made from", True),
    Column("cell", "string", "", "the equations, as cellgraph.parse reads them", True),
    Column("outcome", "string", "", "seed, running, evaluated, or rejected at STAGE", True),
    Column("furthest", "string", "", "last stage that it entered; null before the first"),
    Column("pooled", "bool", "", "whether its cell is in the pool now", True),
    Column("score", "float64", "1", "least ratio of its cell over all tasks; null without one"),
    Column("units", "int64", "1", "units of work that it was given", True),
    Column("trainings", "int64", "1", "settings that were trained in them", True),
    Column("failed", "int64", "1", "of these, neither ok nor rejected", True),
    Column("rejected", "int64", "1", "settings stopped by the screen or at a rung", True),
    Column("steps", "int64", "1", "training steps of all of them", True),
    Column("seconds", "float64", "s", "wall time of its units, last attempts", True),
)  # fmt: skip

#: For every stage, with its name in the place of STAGE; results of the cell, whichever candidate
#: with the same key they were made for.
PER_STAGE = (
    Column("best.STAGE", "float64", "metric", "best METRIC of its cell, validation; null if none"),
    Column("customary.STAGE", "float64", "unit", "CUSTOMARY of the same training"),
    Column("ratio.STAGE", "float64", "1", "relative to the baseline's best, more is better"),
    Column("parameters.STAGE", "int64", "1", "parameters of the model trained for best.STAGE"),
    Column("hidden_size.STAGE", "int64", "1", "hidden units H of the same"),
    Column("tried.STAGE", "int64", "1", "settings trained on this stage", True),
)

CURVES = (
    Column("candidate", "int64", "", "as in candidates.parquet", True),
    Column("unit", "int64", "", "unit of work, from 0", True),
    Column("stage", "string", "", "stage of the funnel", True),
    Column("purpose", "string", "", "seed, candidate or re-evaluation", True),
    Column("index", "int64", "", "place of the setting in its unit, from 0", True),
    Column("setting", "string", "", "the setting as JSON with sorted names", True),
    Column("status", "string", "", "how the training ended: ok, rejected, diverged, …", True),
    Column("step", "int64", "steps", "training steps so far"),
    Column("train_loss", "float64", "nats per scored step", "mean since the point before"),
    Column("valid_loss", "float64", "nats per scored step", "on validation data"),
    Column(
        "valid_metric",
        "float64",
        "metric",
        "what the search compares on that stage, see cellsearch.metrics",
    ),
)


def write(run: Run, folder: str | Path | None = None) -> list[Path]:
    """Write both files into `folder` (the run directory by default); returns their paths.

    Each is replaced as a whole. Raises SearchError when one cannot be written; an older one then
    stays as it was.
    """
    folder = Path(folder or run.directory)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SearchError(f"{folder}: cannot be made ({error.strerror or error})") from None
    paths = [folder / CANDIDATES_FILE, folder / CURVES_FILE]
    _write(paths[0], _schema(run, candidate_columns(run)), _candidates(run))
    _write(paths[1], _schema(run, CURVES), _curves(run))
    return paths


def candidate_columns(run: Run) -> tuple[Column, ...]:
    """The columns of candidates.parquet for the stages of a run; a filter has no ratio."""
    columns = list(CANDIDATES)
    for stage in run.stages:
        words = {"STAGE": stage.name, "METRIC": stage.metric, "CUSTOMARY": stage.customary}
        units = {"metric": stage.metric, "unit": stage.customary}
        for column in PER_STAGE:
            if stage.is_filter and column.name.startswith("ratio."):
                continue
            name, meaning = column.name, column.meaning
            for word, text in words.items():
                name, meaning = name.replace(word, text), meaning.replace(word, text)
            unit = units.get(column.unit, column.unit)
            columns.append(Column(name, column.type, unit, meaning, column.required))
    return tuple(columns)


def _schema(run: Run, columns: Sequence[Column]) -> pa.Schema:
    import pyarrow as pa

    fields = [
        pa.field(
            column.name,
            pa.list_(pa.int64())
            if column.type == "list<int64>"
            else pa.type_for_alias(column.type),
            nullable=not column.required,
            metadata={"unit": column.unit, "meaning": column.meaning},
        )
        for column in columns
    ]
    metrics = {stage.name: stage.metric for stage in run.stages}
    about = {"schema_version": VERSION, "run": run.name, "metrics": json.dumps(metrics)}
    return pa.schema(fields, metadata={f"cellsearch.{name}": text for name, text in about.items()})


def _write(path: Path, schema: pa.Schema, pieces: Iterator[Mapping[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    with _draft(path) as draft, pq.ParquetWriter(draft, schema, compression="zstd") as writer:
        for piece in pieces:
            try:
                arrays = [pa.array(piece[f.name], type=f.type, from_pandas=True) for f in schema]
            except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
                # Rows that are JSON, but not of the form that the search writes.
                raise SearchError(f"{path}: cannot hold what the journal holds ({error})") from None
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


@contextmanager
def _draft(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; renamed to it at the end, deleted when that fails."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            yield draft
            os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise SearchError(f"{path}: cannot be written ({error.strerror or error})") from None


@dataclass
class _Work:
    """What was done for one candidate."""

    units: int = 0
    furthest: int = -1  # number of the stage
    trainings: int = 0
    failed: int = 0
    rejected: int = 0
    steps: int = 0
    seconds: float = 0.0


def _work(run: Run) -> Mapping[int, _Work]:
    """By candidate."""
    order = {stage.name: number for number, stage in enumerate(run.stages)}
    done: dict[int, _Work] = defaultdict(_Work)
    for unit in run.units:
        work = done[unit.candidate]
        work.units += 1
        work.furthest = max(work.furthest, order[unit.stage])
        if unit.id in run.results:
            work.seconds += run.results[unit.id].seconds
    for training in run.trainings:
        work = done[training.candidate]
        work.trainings += training.trained
        work.rejected += training.rejected is not None
        work.failed += training.status not in ("ok", "rejected")
        work.steps += training.steps
    return done


def _candidates(run: Run) -> Iterator[Mapping[str, Any]]:
    work = _work(run)
    fates = frames.fates(run.stages, run.candidates, run.trainings, run.history)
    cells = run.cells.set_index("key")
    names = [stage.name for stage in run.stages]
    for start in range(0, len(run.candidates), CANDIDATES_IN_A_PIECE):
        rows = run.candidates[start : start + CANDIDATES_IN_A_PIECE]
        of_cell = cells.loc[[row.key for row in rows]]
        done = [work.get(row.id, _Work()) for row in rows]
        piece: dict[str, Any] = {
            "candidate": [row.id for row in rows],
            "key": [row.key for row in rows],
            "name": [row.name for row in rows],
            "origin": [row.origin for row in rows],
            "parents": [list(row.parents) for row in rows],
            "cell": [row.cell for row in rows],
            "outcome": [fates[row.id] for row in rows],
            "furthest": [names[w.furthest] if w.furthest >= 0 else None for w in done],
            "pooled": of_cell["pooled"].to_numpy(),
            "score": of_cell["score"].to_numpy(),
        }
        for name in ("units", "trainings", "failed", "rejected", "steps", "seconds"):
            piece[name] = [getattr(w, name) for w in done]
        for stage in run.stages:
            best = [run.best.get((row.key, stage.name)) for row in rows]
            piece[f"parameters.{stage.name}"] = [t.parameters if t else None for t in best]
            piece[f"hidden_size.{stage.name}"] = [t.hidden_size if t else None for t in best]
            kinds = ("best", "customary", "tried") if stage.is_filter else _KINDS
            for kind in kinds:
                piece[f"{kind}.{stage.name}"] = of_cell[f"{kind}.{stage.name}"].to_numpy()
        yield piece


_KINDS = ("best", "customary", "ratio", "tried")


def _curves(run: Run) -> Iterator[Mapping[str, Any]]:
    names = [column.name for column in CURVES]
    rows: list[tuple[Any, ...]] = []
    for t in run.trainings:
        curve = t.curve
        if not curve:
            continue
        setting = json.dumps(dict(t.setting), sort_keys=True)
        about = (t.candidate, t.unit, t.stage, t.purpose, t.index, setting, t.status)
        for point in curve:
            if len(point) != 4:
                raise SearchError(
                    f"{run.directory}: unit {t.unit} has a curve with {len(point)} numbers in a "
                    "row, expected step, train_loss, valid_loss and valid_metric"
                )
            rows.append((*about, *point))
        if len(rows) >= POINTS_IN_A_PIECE:
            yield _columns(names, rows)
            rows = []
    if rows:
        yield _columns(names, rows)


def _columns(names: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> dict[str, Any]:
    return dict(zip(names, zip(*rows, strict=True), strict=True))
