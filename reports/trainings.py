"""The trainings of a run, flat: one for each setting of each unit that has a result.

Here the journal's records are read; nobody else in this package knows their shape.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reports.history import Stage
from reports.wording import clean
from search.errors import SearchError
from search.journal import PackedCurves, ResultRow, UnitRow

SCREEN, RUNG = "screen", "rung"  #: what rejects trainings


@dataclass(frozen=True, slots=True)
class Training:
    """One setting of one unit. Numbers are None where training did not get that far.

    metric     what it counts for: None unless the status is ok, as in `search.funnel.Stage`
    customary  the same training in the customary unit of the task
    loss       of its best evaluation, also where the training failed later; nats per scored step
    fallback   why torch did what should have been compiled; None where all was as it should be
    rejected   by the screen, in front of training, or at a rung, half-way; None for all others
    curve      rows of step, train_loss, loss, metric; the last two on validation data
    """

    unit: int
    candidate: int
    key: str
    stage: str
    purpose: str
    index: int  # in its unit
    setting: Mapping[str, Any]
    status: str
    error: str | None
    fallback: str | None
    rejected: str | None
    metric: float | None
    customary: float | None
    loss: float | None
    best_step: int | None
    steps: int
    seconds: float | None
    parameters: int | None
    hidden_size: int | None
    flops: int | None
    curves: PackedCurves | None  # of the whole unit

    @property
    def curve(self) -> Sequence[Sequence[Any]]:
        return (self.curves[self.index] if self.curves else None) or []

    @property
    def trained(self) -> bool:
        """Whether a single step was attempted."""
        return self.rejected != SCREEN


def trainings(
    directory: Path,
    units: Mapping[int, UnitRow],
    results: Iterable[tuple[ResultRow, PackedCurves | None]],
    keys: Mapping[int, str],
    stages: Sequence[Stage],
) -> Iterator[Training]:
    """In the order of results. A unit that was lost as a whole gives one failure per setting.

    units    by id
    results  as `Journal.packed` gives them: a large run's curves, unpacked, would fill the memory
    keys     by candidate

    Raises SearchError when a result does not fit its unit.
    """
    by_name = {stage.name: stage for stage in stages}
    for result, curves in results:
        unit = units[result.unit]
        stage = by_name[unit.stage]
        yield from _of_unit(directory, unit, result, keys[unit.candidate], stage, curves)


def _of_unit(
    directory: Path,
    unit: UnitRow,
    result: ResultRow,
    key: str,
    stage: Stage,
    curves: PackedCurves | None,
) -> Iterator[Training]:
    settings = unit.payload["settings"]
    records: Sequence[Mapping[str, Any]] = result.records
    if result.status != "ok":
        error = records[0].get("error") if records else None
        records = [{"status": result.status, "error": error}] * len(settings)
    if len(records) != len(settings):
        raise SearchError(
            f"{directory}: unit {unit.id} has {len(records)} records for {len(settings)} "
            "settings, expected one each"
        )
    for index, (setting, record) in enumerate(zip(settings, records, strict=True)):
        metrics, cost = record.get("metrics", {}), record.get("cost", {})
        counts = record["status"] == "ok"
        yield Training(
            unit=unit.id,
            candidate=unit.candidate,
            key=key,
            stage=stage.name,
            purpose=unit.payload["purpose"],
            index=index,
            setting=setting,
            status=record["status"],
            error=record.get("error"),
            fallback=record.get("fallback"),
            rejected=_rejected(directory, unit.id, record),
            metric=metrics.get(stage.metric) if counts else None,
            customary=metrics.get(stage.customary) if counts else None,
            loss=metrics.get("loss"),
            best_step=metrics.get("step"),
            steps=cost.get("steps", 0),
            seconds=cost.get("seconds"),
            parameters=cost.get("parameters"),
            hidden_size=cost.get("hidden_size"),
            flops=cost.get("flops_per_step"),
            curves=curves,
        )


def _rejected(directory: Path, unit: int, record: Mapping[str, Any]) -> str | None:
    if record["status"] != "rejected":
        return None
    if record.get("stage") not in (SCREEN, RUNG):
        raise SearchError(
            f"{directory}: unit {unit} has a setting rejected by {clean(record.get('stage'))}, "
            f"expected {SCREEN} or {RUNG}"
        )
    return str(record["stage"])


def best_trainings(
    trained: Sequence[Training], stages: Sequence[Stage]
) -> dict[tuple[str, str], Training]:
    """The best training by key and stage, the first of equals; none where no training counts."""
    by_name = {stage.name: stage for stage in stages}
    best: dict[tuple[str, str], Training] = {}
    for training in trained:
        if training.metric is None:
            continue
        place = training.key, training.stage
        before = best[place].metric if place in best else None
        if by_name[training.stage].better(training.metric, before):
            best[place] = training
    return best
