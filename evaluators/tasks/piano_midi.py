"""Piano-midi: classical piano pieces, long and hard to predict.

Measures: predicting the next frame of a piano roll; 87 pieces of up to 3,857 frames to train on, 12
and 25 held out. Source: Boulanger-Lewandowski, Bengio & Vincent 2012; Jozefowicz, Zaremba &
Sutskever 2015, table 2 (LSTM 6.866, GRU 6.876, MUT1 6.792, best of many settings at up to 1M
parameters; a plain tanh network has 6.809, so the task tells cells apart badly). Metric: NLL in
nats per frame, minimise.

Reached on validation, 50,000 parameters, 800 steps, unroll=50 (Adam, scale 1.4, clip 5, one layer,
the better of two learning rates, one seed): LSTM 8.64, GRU 8.88, tanh network 8.79.
"""

from __future__ import annotations

from evaluators.tasks.music import MusicTask


class PianoMidi(MusicTask):
    """See the module."""

    name = "piano_midi"
    data_set = "piano_midi"
