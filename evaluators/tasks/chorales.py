"""Bach chorales from the music21 package: a music task without a download.

Measures: predicting the next frame of a piano roll, eighth notes, four voices, original keys.
Source: the scores in music21's corpus; the split and the grid are this project's own (see
evaluators/data/chorales.py), so compare cells on it with each other, never with a printed JSB
figure: frames of an eighth repeat more often than those of a quarter, which jsb.py has.
Metric: NLL in nats per frame, minimise.

Reached on validation, 50,000 parameters, 800 steps, unroll=50 (Adam, scale 1.4, clip 5, one layer,
the better of two learning rates, one seed): LSTM 7.18, GRU 7.70, tanh network 7.70.
"""

from __future__ import annotations

from evaluators.tasks.music import MusicTask


class Chorales(MusicTask):
    """See the module."""

    name = "chorales"
    data_set = "chorales"
