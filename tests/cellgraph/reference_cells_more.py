"""The wider LSTM family, the cells that are linear in their state, the deep and the evolved ones a
second time, from their papers' equations.

Each function is one time step, as in `reference_cells.py`; the comments give the equations in each
paper's own letters.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import leaky_relu, linear, logsigmoid, silu

from tests.cellgraph.reference_cells_base import Params, Step, both, of_x

# LSTM family --------------------------------------------------------------------------------------


def _centred(a: Tensor) -> Tensor:
    """2 / (1 + exp(-a)) - 1, the logistic function centred to (-1, 1)."""
    return 2 / (1 + torch.exp(-a)) - 1


def lstm_1997(p: Params, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    # s_c(t) = s_c(t-1) + y_in g(net_c);  y_c = y_out h(s_c);  g in [-2, 2], h in [-1, 1]
    i, o = (torch.sigmoid(both(p, gate, x, h)) for gate in "io")
    c_new = torch.addcmul(c, i, 2 * _centred(both(p, "g", x, h)))
    return o * _centred(c_new), c_new


def lstm_2000(p: Params, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    # s_c(t) = y_phi s_c(t-1) + y_in g(net_c)
    i, f, o = (torch.sigmoid(both(p, gate, x, h)) for gate in "ifo")
    c_new = torch.addcmul(f * c, i, 2 * _centred(both(p, "g", x, h)))
    return o * _centred(c_new), c_new


def wmc_lstm(p: Params, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    # i = s(W x + U h + tanh(V c) + b), likewise f, and o with the new c
    i, f = (
        torch.sigmoid(both(p, gate, x, h) + torch.tanh(linear(c, p[f"V_{gate}"]))) for gate in "if"
    )
    c_new = c * f + torch.tanh(both(p, "g", x, h)) * i
    o = torch.sigmoid(both(p, "o", x, h) + torch.tanh(linear(c_new, p["V_o"])))
    return torch.tanh(c_new) * o, c_new


def residual_lstm(p: Params, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    # r = tanh(c');  m = W_p r;  h' = o (m + W_h x)
    i, f = (torch.sigmoid(torch.addcmul(both(p, gate, x, h), p[f"p_{gate}"], c)) for gate in "if")
    c_new = c * f + torch.tanh(both(p, "g", x, h)) * i
    o = torch.sigmoid(both(p, "o", x, h) + linear(c_new, p["V_o"]))
    return o * (linear(torch.tanh(c_new), p["V_p"]) + linear(x, p["W_r"])), c_new


def multiplicative_lstm(p: Params, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    # m = (W_mx x) (W_mh h); every gate reads m in place of h
    m = linear(x, p["W_m"]) * linear(h, p["U_m"])
    i, f, g, o = (of_x(p, gate, x) + linear(m, p[f"V_{gate}"]) for gate in "ifgo")
    c_new = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.tanh(c_new) * torch.sigmoid(o), c_new


def _sloped(p: Params, x: Tensor, h: Tensor, c: Tensor, *, slopes: str) -> tuple[Tensor, ...]:
    # gate = s(lambda_gate (W x + U h + b)); `slopes` names the three lambdas
    i, f, o = (
        torch.sigmoid(both(p, gate, x, h) * p[slope])
        for gate, slope in zip("ifo", slopes.split(), strict=True)
    )
    c_new = c * f + torch.tanh(both(p, "g", x, h)) * i
    return torch.tanh(c_new) * o, c_new


def lstm_projection(p: Params, x: Tensor, r: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    # peephole LSTM in which r = W_rm m, m = o tanh(c), takes the place of the output
    i, f = (torch.sigmoid(torch.addcmul(both(p, gate, x, r), p[f"p_{gate}"], c)) for gate in "if")
    c_new = c * f + torch.tanh(both(p, "g", x, r)) * i
    o = torch.sigmoid(torch.addcmul(both(p, "o", x, r), p["p_o"], c_new))
    return linear(torch.tanh(c_new) * o, p["V_r"]), c_new


def lstm_projection_torch(p: Params, x: Tensor, r: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    i, f, o = (torch.sigmoid(both(p, gate, x, r)) for gate in "ifo")
    c_new = c * f + torch.tanh(both(p, "g", x, r)) * i
    return linear(torch.tanh(c_new) * o, p["V_r"]), c_new


def dcm(
    p: Params, x: Tensor, h: Tensor, c: Tensor, i: Tensor, f: Tensor, o: Tensor
) -> tuple[Tensor, ...]:
    # x_l = s(W x + W h + w s_c + w_ll x_l + w_lphi x_phi + w_lom x_om), likewise phi, of the step
    # before; x_om reads the new x_l and x_phi, and its own past
    def gate(to: str, *seen: Tensor) -> Tensor:
        total = torch.addcmul(both(p, to, x, h), p[f"p_{to}"], c)
        for source, value in zip("ifo", seen, strict=True):
            total = torch.addcmul(total, p[f"w_{source}{to}"], value)
        return torch.sigmoid(total)

    i_new, f_new = gate("i", i, f, o), gate("f", i, f, o)
    o_new = gate("o", i_new, f_new, o)
    c_new = c * f_new + torch.tanh(both(p, "g", x, h)) * i_new
    return torch.tanh(c_new) * o_new, c_new, i_new, f_new, o_new


def slstm(p: Params, x: Tensor, h: Tensor, c: Tensor, n: Tensor, m: Tensor) -> tuple[Tensor, ...]:
    # log f = log s(f~);  m' = max(log f + m, i~);  f^ = exp(log f + m - m');  i^ = exp(i~ - m')
    # c' = f^ c + i^ z;  n' = f^ n + i^;  h' = o c' / n'
    i_raw, f_raw, z_raw, o_raw = (both(p, gate, x, h) for gate in "ifgo")
    kept = logsigmoid(f_raw) + m
    m_new = torch.maximum(kept, i_raw)
    i, f = torch.exp(i_raw - m_new), torch.exp(kept - m_new)
    c_new, n_new = f * c + i * torch.tanh(z_raw), f * n + i
    return torch.sigmoid(o_raw) * c_new / n_new, c_new, n_new, m_new


# Linear in the state ------------------------------------------------------------------------------


def of_two(p: Params, gate: str, x: Tensor, previous: Tensor) -> Tensor:
    """W_gate x_t + V_gate x_{t-1} + b_gate."""
    return of_x(p, gate, x) + linear(previous, p[f"V_{gate}"])


def t_rnn(p: Params, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    # z = W x;  f = s(V x + b);  h' = f h + (1 - f) z
    return (torch.lerp(linear(x, p["W_g"]), h, torch.sigmoid(of_x(p, "f", x))),)


def t_gru(p: Params, x: Tensor, h: Tensor, previous: Tensor) -> tuple[Tensor, ...]:
    # z = .;  f = s(.);  o = tanh(.);  h' = f h + z o
    z, f, o = (of_two(p, gate, x, previous) for gate in "zfo")
    return torch.addcmul(torch.sigmoid(f) * h, z, torch.tanh(o)), x


def t_lstm(p: Params, x: Tensor, c: Tensor, previous: Tensor) -> tuple[Tensor, ...]:
    # c' = f c + (1 - f) z;  h = c' o
    z, f, o = (of_two(p, gate, x, previous) for gate in "zfo")
    c_new = torch.lerp(z, c, torch.sigmoid(f))
    return torch.tanh(o) * c_new, c_new, x


def sru(p: Params, x: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    # f = s(W_f x + v_f c + b_f);  c' = f c + (1 - f) W x;  r = s(W_r x + v_r c + b_r)
    # h = r c' + (1 - r) x
    f, r = (torch.sigmoid(torch.addcmul(of_x(p, g, x), p[f"v_{g}"], c)) for g in "fr")
    c_new = torch.lerp(linear(x, p["W_g"]), c, f)
    return torch.lerp(x, c_new, r), c_new


def sru_v1(p: Params, x: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    # the gates without c;  h = r tanh(c') + (1 - r) x
    f, r = torch.sigmoid(of_x(p, "f", x)), torch.sigmoid(of_x(p, "r", x))
    c_new = torch.lerp(linear(x, p["W_g"]), c, f)
    return torch.lerp(x, torch.tanh(c_new), r), c_new


def qrnn(p: Params, x: Tensor, c: Tensor, previous: Tensor) -> tuple[Tensor, ...]:
    # z = tanh(W * [x_{t-1}, x_t]);  f, o = s(.);  c' = f c + (1 - f) z;  h = o c'
    z, f, o = (of_two(p, gate, x, previous) for gate in "zfo")
    c_new = torch.lerp(torch.tanh(z), c, torch.sigmoid(f))
    return torch.sigmoid(o) * c_new, c_new, x


def qrnn_ifo(p: Params, x: Tensor, c: Tensor, previous: Tensor) -> tuple[Tensor, ...]:
    # c' = f c + i z
    z, i, f, o = (of_two(p, gate, x, previous) for gate in "zifo")
    c_new = torch.addcmul(torch.sigmoid(f) * c, torch.sigmoid(i), torch.tanh(z))
    return torch.sigmoid(o) * c_new, c_new, x


def _positive(a: Tensor) -> Tensor:
    # Feng et al., g(x) = x + 0.5 for x >= 0, else s(x)
    return torch.where(a >= 0, a + 0.5, torch.sigmoid(a))


def min_gru(p: Params, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    # z = s(.);  h~ = W x + b;  h' = (1 - z) h + z h~
    return (torch.lerp(h, of_x(p, "g", x), torch.sigmoid(of_x(p, "z", x))),)


def min_gru_log(p: Params, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    return (torch.lerp(h, _positive(of_x(p, "g", x)), torch.sigmoid(of_x(p, "z", x))),)


def _share(p: Params, x: Tensor) -> Tensor:
    """i / (f + i) of minLSTM; the rest of one is f / (f + i)."""
    f, i = torch.sigmoid(of_x(p, "f", x)), torch.sigmoid(of_x(p, "i", x))
    return i / (f + i)


def min_lstm(p: Params, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    # f' = f / (f + i);  i' = i / (f + i);  h' = f' h + i' h~
    return (torch.lerp(h, of_x(p, "g", x), _share(p, x)),)


def min_lstm_log(p: Params, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    return (torch.lerp(h, _positive(of_x(p, "g", x)), _share(p, x)),)


def hgru(p: Params, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    # lambda = gamma + (1 - gamma) mu;  h' = lambda h + (1 - lambda) silu(.);  y = g h'
    gamma = torch.sigmoid(p["b_l"])
    rate = gamma + (1 - gamma) * torch.sigmoid(of_x(p, "f", x))
    h_new = torch.lerp(silu(of_x(p, "g", x)), h, rate)
    return torch.sigmoid(of_x(p, "o", x)) * h_new, h_new


# Cells that a search found ---------------------------------------------------------------------


def nas_cell(p: Params, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    # As TensorFlow's NASCell orders it: two products of all leaves, a sum or a product of each
    of_input = linear(x, torch.cat([p[f"W_{k}"] for k in range(8)])).chunk(8, dim=1)
    of_state = linear(h, torch.cat([p[f"U_{k}"] for k in range(8)])).chunk(8, dim=1)
    a = [i + m for i, m in zip(of_input, of_state, strict=True)]
    first = torch.tanh(torch.sigmoid(a[0]) * torch.relu(a[1]))
    second = torch.tanh(torch.sigmoid(a[2]) + torch.relu(of_input[3] * of_state[3]))
    third = torch.tanh(torch.tanh(a[4]) * torch.sigmoid(a[5]))
    fourth = torch.sigmoid(torch.tanh(a[6]) + torch.sigmoid(a[7]))
    c_new = torch.tanh(first + c) * second
    return torch.tanh(c_new * torch.tanh(third + fourth)), c_new


#: Name -> (activation and predecessor of every node after the first; nodes whose mean is the
#: output), as in the genotypes of the DARTS code.
_GENOTYPES = {
    "darts_v1": (
        ["relu 0", "relu 1", "tanh 2", "relu 3", "relu 4", "identity 1", "relu 5", "relu 1"],
        range(1, 9),
    ),
    "darts_v2": (
        ["sigmoid 0", "relu 1", "relu 1", "identity 1", "tanh 2", "sigmoid 5", "tanh 3", "relu 5"],
        range(1, 9),
    ),
    "enas": (
        ["tanh 0", "tanh 1", "relu 1", "tanh 3", "tanh 3", "relu 3", "relu 4", "relu 7", "relu 8",
         "relu 8", "relu 8"],
        (2, 5, 6, 9, 10, 11),
    ),
}  # fmt: skip


def _genotype(p: Params, x: Tensor, h: Tensor, *, name: str) -> tuple[Tensor, ...]:
    # s_i = s_p + s(c) (f(h) - s_p), [c, h] = s_p W_i; node 0 is a tanh of [x, h] W_0
    nodes, emitted = _GENOTYPES[name]
    entering = torch.cat([x, h], dim=1)
    gate, value = (
        entering @ torch.cat([p[f"W_{kind}0"], p[f"U_{kind}0"]], dim=1).T for kind in "ch"
    )
    states = [torch.lerp(h, torch.tanh(value), torch.sigmoid(gate))]
    for k, (activation, predecessor) in enumerate(map(str.split, nodes), start=1):
        s = states[int(predecessor)]
        gate, value = linear(s, torch.cat([p[f"V_c{k}"], p[f"V_h{k}"]])).chunk(2, dim=1)
        squashed = value if activation == "identity" else getattr(torch, activation)(value)
        states.append(torch.lerp(s, squashed, torch.sigmoid(gate)))
    return (torch.stack([states[k] for k in emitted]).mean(dim=0),)


def nas_bench_nlp_4(p: Params, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    # node_1 = tanh(lin(x, h));  node_4 = leaky_relu(lin(h, node_1))
    # node_7 = tanh(lin(node_4, node_1));  h_new = s(lin(node_1, x, node_7))
    node_1 = torch.tanh(both(p, "0", x, h))
    node_4 = leaky_relu(linear(h, p["U_3"], p["b_3"]) + linear(node_1, p["V_3"]))
    node_7 = torch.tanh(linear(node_4, p["V_6"], p["b_6"]) + linear(node_1, p["Q_6"]))
    last = linear(node_1, p["V_8"]) + of_x(p, "8", x) + linear(node_7, p["Q_8"])
    return (torch.sigmoid(last),)


def nas_bench_nlp_9(p: Params, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    # node_1 = leaky_relu(lin(x, h));  h_new = tanh(lin(x, node_1, h))
    node_1 = leaky_relu(both(p, "0", x, h))
    return (torch.tanh(both(p, "2", x, h) + linear(node_1, p["V_2"])),)


STEPS: dict[str, Step] = {
    **{
        step.__name__: step
        for step in (
            lstm_1997, lstm_2000, wmc_lstm, residual_lstm, multiplicative_lstm, lstm_projection,
            lstm_projection_torch, dcm, slstm, t_rnn, t_gru, t_lstm, sru, sru_v1, qrnn, qrnn_ifo,
            min_gru, min_gru_log, min_lstm, min_lstm_log, hgru, nas_cell, nas_bench_nlp_4,
            nas_bench_nlp_9,
        )
    },
    "lstm_slope_unit": partial(_sloped, slopes="s_i s_f s_o"),
    "lstm_slope_gate": partial(_sloped, slopes="s_i s_f s_o"),
    "lstm_slope": partial(_sloped, slopes="s s s"),
    **{name: partial(_genotype, name=name) for name in _GENOTYPES},
}  # fmt: skip
EMITS = frozenset({"t_lstm", "sru", "sru_v1", "qrnn", "qrnn_ifo", "hgru"})
