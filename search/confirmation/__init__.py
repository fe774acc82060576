"""Confirmation: the best cells of a run against tuned baselines, as a result that can be claimed.

A search score is the best of a few short trainings on the data that chose among the cells. Here the
best cells, the baselines and some random cells are trained again from scratch, all on the same
terms: equal parameter budgets, the same settings to choose from (on validation data), then fresh
seeds, measured on test data. `plan` says what is trained, `driver` trains it, `work` runs in the
workers; `reports.confirmed` says what came out. Everything is rows of RUN/confirm/journal.sqlite.
"""

from __future__ import annotations

from search.confirmation.driver import FOLDER, confirm
from search.confirmation.plan import Options

__all__ = ["FOLDER", "Options", "confirm"]
