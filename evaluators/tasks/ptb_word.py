"""Penn Treebank, words: the language model everybody compares with.

Measures: predicting the next word of newspaper English, 10,000 different words and `<eos>` for the
end of a line among them; 929,589 tokens to train on, 73,760 and 82,430 held out. Source: Mikolov et
al. 2010 for the text; Jozefowicz, Zaremba & Sutskever 2015, table 1 (column "PTB", accuracy: LSTM
0.08912, GRU 0.09069) and table 3 (5M parameters, test, perplexity: LSTM 109.8, GRU 108.2). Metric:
accuracy of the next word, maximise; perplexity is printed too.

Where the paper is silent: the text is read as a ring from a place that the seed chooses (see
`CorpusTask.train_batches`), so the state is never reset between passes. The held-out pass runs in
20 columns with the state carried over, predicts every token but the first, and weighs all alike.

Reached on validation, 1,000,000 parameters, 1,500 steps, which is one pass and a bit (Adam, scale
1.4, clip 5, one layer, the better of two learning rates, one seed; valid_limit=20000): LSTM 0.198
(perplexity 213), GRU 0.206 (189), tanh network 0.198 (206).
"""

from __future__ import annotations

from evaluators.tasks.streams import CorpusTask


class PTBWord(CorpusTask):
    """See the module."""

    name = "ptb_word"
    data_set = "ptb_word"
    unit = "perplexity"

    def __init__(
        self,
        *,
        batch_size: int = 20,
        unroll: int = 35,
        train_limit: int | None = None,
        valid_limit: int | None = None,
        test_limit: int | None = None,
        eval_batch_size: int = 20,
    ) -> None:
        """As CorpusTask, but for the 20 columns of the held-out pass, which are customary here."""
        super().__init__(
            batch_size=batch_size,
            unroll=unroll,
            train_limit=train_limit,
            valid_limit=valid_limit,
            test_limit=test_limit,
            eval_batch_size=eval_batch_size,
        )
