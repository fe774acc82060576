"""JSB Chorales: four-part harmony in quarter notes, little data.

Measures: predicting the next frame of a piano roll; 229 chorales of 60 frames on average to train
on, 76 and 77 held out. Source: Boulanger-Lewandowski, Bengio & Vincent 2012; Greff et al. 2017,
section on results: best trial 8.38 nats per frame, and most variants of the LSTM not significantly
different from it. With so few pieces it measures over-fitting as much as the cell. Metric: NLL in
nats per frame, minimise.

Reached on validation, 50,000 parameters, 800 steps, unroll=50 (Adam, scale 1.4, clip 5, one layer,
the better of two learning rates, one seed): LSTM 8.61, GRU 8.75, tanh network 8.60.
"""

from __future__ import annotations

from evaluators.tasks.music import MusicTask


class JSB(MusicTask):
    """See the module."""

    name = "jsb"
    data_set = "jsb"
    beats = 1.0
