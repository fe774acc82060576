"""The tasks by name.

Lives here: the registry. Must not live here: what any task does (its own file), or data reading.
"""

from __future__ import annotations

import inspect
from typing import Any

from evaluators.errors import unknown
from evaluators.task import Task
from evaluators.tasks.arithmetic import Arithmetic
from evaluators.tasks.chorales import Chorales
from evaluators.tasks.jsb import JSB
from evaluators.tasks.memorisation import Memorisation
from evaluators.tasks.nottingham import Nottingham
from evaluators.tasks.piano_midi import PianoMidi
from evaluators.tasks.ptb_char import PTBChar
from evaluators.tasks.ptb_word import PTBWord
from evaluators.tasks.pydoc_char import PydocChar
from evaluators.tasks.xml import XML

__all__ = ["ALIASES", "create", "names", "task_class"]

_TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (
        Memorisation,
        Arithmetic,
        XML,
        PTBWord,
        PTBChar,
        PydocChar,
        Nottingham,
        JSB,
        PianoMidi,
        Chorales,
    )
}

# The task of a family that needs nothing to be downloaded.
ALIASES = {"language": "pydoc_char", "music": "chorales"}


def names() -> list[str]:
    """Every task, the cheapest first; the aliases are not repeated."""
    return list(_TASKS)


def task_class(name: str) -> type[Task]:
    """The class behind a name or an alias; DataError, naming the nearest, for any other word."""
    found = _TASKS.get(ALIASES.get(name, name)) if isinstance(name, str) else None
    if found is None:
        raise unknown("task", name, [*_TASKS, *ALIASES])
    return found


def create(name: str, **options: Any) -> Task:
    """A task with its options; those left out keep the defaults of the task's own file.

    Raises DataError for an unknown name or option (naming the nearest known one), for a value out
    of range, and for data that are missing or damaged.
    """
    task = task_class(name)
    known = list(inspect.signature(task).parameters)
    for option in options:
        if option not in known:
            raise unknown(f"option of task {task.name}", option, known)
    return task(**options)
