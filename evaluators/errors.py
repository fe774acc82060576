"""The error of this package, and how it names the nearest right word.

Lives here: `DataError` and the one helper that words an unknown name. Must not live here: handling.
The command line turns a DataError into one line on standard error and exit status 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DataError(ValueError):
    """Missing or damaged data, an unknown task, or an option a task does not take."""


def unknown(kind: str, word: object, known: Iterable[str]) -> DataError:
    """The error for a name that does not exist, with the nearest one that does.

    kind: what was looked for, as it stands in the sentence ("task", "option of task xml", …).
    known: every name that would have been right, in the order to print them.
    """
    names = list(known)
    near = difflib.get_close_matches(str(word), names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    return DataError(f"unknown {kind}: {word!r}{hint} known: {', '.join(names)}")
