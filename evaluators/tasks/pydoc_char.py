"""The English that Python ships with itself, by character: a language task without a download.

Measures: predicting the next character of the language reference behind `help("topic")`, that is
the topics of pydoc_data.topics joined in the order of their sorted names, about 0.46M characters;
printable ASCII and the newline are symbols, whatever else occurs is one more. Source: none; it
stands in for Penn Treebank characters where nothing may be fetched, so compare cells on it with
each other, never with a printed table. Metric: accuracy of the next character, maximise; bits per
character are printed too.

The text changes a little with every release of Python: `describe` carries its checksum, and figures
from two Pythons are figures of two tasks. The first 90 % are for training, the next 5 % for
validation, the last 5 % for the test; the splits are contiguous.

Reached on validation, 50,000 parameters, 2,000 steps (Adam, scale 1.4, clip 5, one layer, the
better of two learning rates, one seed; valid_limit=20000): LSTM 0.587 (2.34 bits), GRU 0.602 (2.22
bits), tanh network 0.589 (2.33 bits).
"""

from __future__ import annotations

from evaluators.tasks.streams import CorpusTask


class PydocChar(CorpusTask):
    """See the module."""

    name = "pydoc_char"
    data_set = "pydoc_char"
    unit = "bits_per_character"
