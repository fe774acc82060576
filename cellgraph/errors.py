"""The one error of this package. Everything that is wrong with a cell, a name or a size is a
CellError; `closest` guesses for its message what was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CellError(ValueError):
    """A malformed cell, name or size.

    The first line of the message says what is wrong, where, and what was expected, and stands on
    its own. When the fault lies in notation, two more lines show the source line and a caret under
    the offending character.
    """

    def __init__(
        self, message: str, *, line: int | None = None, column: int | None = None, source: str = ""
    ) -> None:
        self.line = line
        self.column = column
        text = message
        if line is not None:
            text = f"line {line}: {message}"
            if source and column is not None:
                cut = max(0, column - 60)  # a long line is shown around the caret
                source, column = source[cut : cut + 120], column - cut
                # A tab or an escape character would move the caret, or the cursor of the terminal.
                source = "".join(
                    character if character.isprintable() else " " for character in source
                )
                text += f"\n    {source}\n    {' ' * column}^"
        super().__init__(text)


def closest(word: str, known: Iterable[str]) -> str:
    """' (did you mean …?)' when something similar is known, else ''."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""
