"""Three small programs for torch.nn.LSTM and torch.nn.GRU, in the style of public examples.

They take the class as an argument, which is all that they know of us. Each trains its model and
returns the losses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

#: torch.nn.LSTM, or what stands in for it.
Recurrent = Callable[..., nn.Module]


def language_model(recurrent: Recurrent) -> list[float]:
    """A language model of characters: truncated back-propagation, with the state carried over."""
    text = "the quick brown fox jumps over the lazy dog. " * 6
    letters = sorted(set(text))
    data = torch.tensor([letters.index(c) for c in text])

    class Model(nn.Module):
        def __init__(self, ntoken: int, ninp: int, nhid: int, nlayers: int, dropout: float) -> None:
            super().__init__()
            self.drop = nn.Dropout(dropout)
            self.encoder = nn.Embedding(ntoken, ninp)
            self.rnn = recurrent(ninp, nhid, nlayers, dropout=dropout)
            self.decoder = nn.Linear(nhid, ntoken)
            self.nhid, self.nlayers = nhid, nlayers

        def forward(self, inputs: Tensor, hidden: Any) -> tuple[Tensor, Any]:
            self.rnn.flatten_parameters()
            output, hidden = self.rnn(self.drop(self.encoder(inputs)), hidden)
            return self.decoder(self.drop(output)), hidden

        def init_hidden(self, batch: int) -> tuple[Tensor, Tensor]:
            weight = next(self.parameters())
            return (
                weight.new_zeros(self.nlayers, batch, self.nhid),
                weight.new_zeros(self.nlayers, batch, self.nhid),
            )

    def repackage_hidden(hidden: Any) -> Any:
        if isinstance(hidden, Tensor):
            return hidden.detach()
        return tuple(repackage_hidden(v) for v in hidden)

    batch, bptt = 5, 9
    source = data[: len(data) // batch * batch].view(batch, -1).t().contiguous()
    model = Model(len(letters), 16, 24, 2, 0.1)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    losses = []
    for _ in range(2):
        model.train()
        hidden: Any = model.init_hidden(batch)
        for i in range(0, len(source) - 1 - bptt, bptt):
            inputs, targets = source[i : i + bptt], source[i + 1 : i + 1 + bptt].reshape(-1)
            model.zero_grad()
            hidden = repackage_hidden(hidden)
            output, hidden = model(inputs, hidden)
            loss = nn.functional.cross_entropy(output.view(-1, len(letters)), targets)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.25)
            optimizer.step()
            losses.append(loss.item())
    model.eval()
    with torch.no_grad():  # some text, letter by letter
        letter, hidden = source[:1, :1], model.init_hidden(1)
        for _ in range(4):
            output, hidden = model(letter, hidden)
            letter = output.argmax(-1)
    return losses


def classifier(recurrent: Recurrent) -> list[float]:
    """Sequences of unequal lengths, packed, read in both directions: is their sum positive?"""

    class Classifier(nn.Module):
        def __init__(self, input_size: int, hidden_size: int) -> None:
            super().__init__()
            self.lstm = recurrent(
                input_size=input_size,
                hidden_size=hidden_size,
                num_layers=1,
                bias=True,
                batch_first=True,
                bidirectional=True,
            )
            self.fc = nn.Linear(2 * hidden_size, 2)

        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            packed_output, (hidden, _) = self.lstm(packed)
            output, found = pad_packed_sequence(packed_output, batch_first=True)
            assert torch.equal(found, lengths)
            assert output.shape == (len(x), int(lengths.max()), 2 * self.lstm.hidden_size)
            logits: Tensor = self.fc(torch.cat((hidden[-2], hidden[-1]), dim=1))
            return logits

    model = Classifier(2, 12)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    losses = []
    for _ in range(25):
        lengths = torch.randint(1, 8, (32,))
        x = torch.randn(32, 7, 2)
        inside = (torch.arange(7) < lengths[:, None]).unsqueeze(-1)
        labels = ((x * inside).sum((1, 2)) > 0).long()
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x, lengths), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def forecaster(recurrent: Recurrent) -> list[float]:
    """An encoder and a decoder, written for nn.GRU: the next steps of sine waves, the decoder fed
    with what it has said."""

    class Seq2Seq(nn.Module):
        def __init__(self, hidden_size: int) -> None:
            super().__init__()
            self.encoder = recurrent(1, hidden_size, num_layers=2, batch_first=True)
            self.decoder = recurrent(1, hidden_size, num_layers=2, batch_first=True)
            self.out = nn.Linear(hidden_size, 1)

        def forward(self, past: Tensor, steps: int) -> Tensor:
            _, hidden = self.encoder(past)
            value, outputs = past[:, -1:], []
            for _ in range(steps):
                output, hidden = self.decoder(value, hidden)
                value = value + self.out(output)
                outputs.append(value)
            return torch.cat(outputs, dim=1)

    model = Seq2Seq(12)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        start = 6.28 * torch.rand(16, 1)
        waves = torch.sin(start + 0.5 * torch.arange(16)).unsqueeze(-1)
        loss = nn.functional.mse_loss(model(waves[:, :12], 4), waves[:, 12:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
