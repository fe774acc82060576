"""Nottingham: folk tunes with chords, the easiest of the polyphonic collections.

Measures: predicting the next frame of a piano roll; 694 pieces to train on, 173 and 170 held out;
the melody is simple and the chords repeat. Source: Boulanger-Lewandowski, Bengio & Vincent 2012;
Jozefowicz, Zaremba & Sutskever 2015, table 2 (without dropout: LSTM 3.492, GRU 3.410, MUT1 3.254,
best of many settings at up to 1M parameters). Metric: NLL in nats per frame, minimise.

Where the paper is silent, here as in every music task: training windows start from the zero state,
the first frame of a piece is not predicted, frames are averaged over the whole split (music.py).

Reached on validation, 50,000 parameters, 800 steps, unroll=50, valid_limit=60 (Adam, scale 1.4,
clip 5, one layer, the better of two learning rates, one seed): LSTM 4.47, GRU 4.31, tanh network
4.42.
"""

from __future__ import annotations

from evaluators.tasks.music import MusicTask


class Nottingham(MusicTask):
    """See the module."""

    name = "nottingham"
    data_set = "nottingham"
