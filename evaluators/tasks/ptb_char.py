"""Penn Treebank, characters: spelling, words and a little grammar from a small alphabet.

Measures: predicting the next character of the word-level text (lower case, `<unk>` and `N` spelled
out as they stand): the words of a line joined by one space, a newline after each line; 5,017,482
characters to train on, 393,042 and 442,423 held out. Source: Mikolov et al. 2012, "Subword language
modeling with neural networks", whose character files are this text with `_` for the space;
Jozefowicz et al. 2015 use the word level only. Metric: accuracy of the next character, maximise;
bits per character are printed too.

Where there is no rule: the ring and the columns are those of the word level (see ptb_word.py), 100
columns for the held-out pass.

Reached on validation, 50,000 parameters, 2,000 steps (Adam, scale 1.4, clip 5, one layer, the
better of two learning rates, one seed; valid_limit=20000): LSTM 0.537 (2.23 bits), GRU 0.555 (2.15
bits), tanh network 0.543 (2.19 bits).
"""

from __future__ import annotations

from evaluators.tasks.streams import CorpusTask


class PTBChar(CorpusTask):
    """See the module."""

    name = "ptb_char"
    data_set = "ptb_char"
    unit = "bits_per_character"
