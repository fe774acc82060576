"""The one error of the search package. Nothing else belongs here."""

from __future__ import annotations


class SearchError(ValueError):
    """A wrong configuration, an unusable run directory or a cluster that does not answer.

    Its text is one line that says what is wrong, where, and what was expected; the command line
    prints it as it is and exits with status 2.
    """
