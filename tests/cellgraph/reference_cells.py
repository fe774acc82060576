"""The named cells a second time: plain torch, from the papers' equations. Imports nothing of ours.

Each function is one time step: parameters by name, x (B, X), the previous states (B, H); it returns
the next states, the one that the layer emits first, or, for the cells of `EMITS`, the output and
then the next states. The comments give the equations in each paper's own letters. The classics, the
cells of Jozefowicz et al. and Greff et al., and those with constants stand here, the others in
`reference_cells_light.py` and `reference_cells_more.py`; `STEPS` has them all.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import linear

from tests.cellgraph import reference_cells_light, reference_cells_more
from tests.cellgraph.reference_cells_base import Params, Step, both, unroll

__all__ = ["EMITS", "STEPS", "unroll"]

# Elman 1990 ---------------------------------------------------------------------------------------


def tanh_rnn(p: Params, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    return (torch.tanh(both(p, "h", x, h)),)


# Jozefowicz, Zaremba, Sutskever 2015 --------------------------------------------------------------


def lstm(p: Params, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    i, f, o = (torch.sigmoid(both(p, gate, x, h)) for gate in "ifo")
    candidate = torch.tanh(both(p, "g", x, h))
    c_new = c * f + candidate * i
    return torch.tanh(c_new) * o, c_new


def lstm_jozefowicz(p: Params, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    # i = tanh(.), j = s(.), f = s(.), o = tanh(.);  c_t = c_{t-1} f + i j;  h_t = tanh(c_t) o
    i = torch.tanh(both(p, "i", x, h))
    j = torch.sigmoid(both(p, "j", x, h))
    f = torch.sigmoid(both(p, "f", x, h))
    o = torch.tanh(both(p, "o", x, h))
    c_new = c * f + i * j
    return torch.tanh(c_new) * o, c_new


def lstm_i(p: Params, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    f, o = (torch.sigmoid(both(p, gate, x, h)) for gate in "fo")
    c_new = c * f + torch.tanh(both(p, "g", x, h))
    return torch.tanh(c_new) * o, c_new


def lstm_f(p: Params, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    i, o = (torch.sigmoid(both(p, gate, x, h)) for gate in "io")
    c_new = c + torch.tanh(both(p, "g", x, h)) * i
    return torch.tanh(c_new) * o, c_new


def lstm_o(p: Params, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    i, f = (torch.sigmoid(both(p, gate, x, h)) for gate in "if")
    c_new = c * f + torch.tanh(both(p, "g", x, h)) * i
    return torch.tanh(c_new), c_new  # "h_t becomes tanh(c_t)"


def gru(p: Params, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    # r = s(.), z = s(.);  h~ = tanh(Wxh x + Whh (r h) + b);  h' = z h + (1 - z) h~
    r, z = torch.sigmoid(both(p, "r", x, h)), torch.sigmoid(both(p, "z", x, h))
    return (torch.lerp(torch.tanh(both(p, "g", x, r * h)), h, z),)


def gru_reset_after(p: Params, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    # torch.nn.GRU: n = tanh(W_in x + b_in + r (W_hn h + b_hn));  h' = (1 - z) n + z h
    r, z = torch.sigmoid(both(p, "r", x, h)), torch.sigmoid(both(p, "z", x, h))
    n = torch.tanh(linear(x, p["W_g"], p["b_g"]) + r * linear(h, p["U_g"], p["b_gh"]))
    return (torch.lerp(n, h, z),)


def mut1(p: Params, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    # z = s(Wxz x + b_z);  r = s(Wxr x + Whr h + b_r)
    # h' = tanh(Whh (r h) + tanh(x) + b_h) z + h (1 - z)
    z = torch.sigmoid(linear(x, p["W_z"], p["b_z"]))
    r = torch.sigmoid(both(p, "r", x, h))
    return (torch.lerp(h, torch.tanh(linear(r * h, p["U_g"], p["b_g"]) + torch.tanh(x)), z),)


def mut2(p: Params, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    # z = s(Wxz x + Whz h + b_z);  r = s(x + Whr h + b_r)
    # h' = tanh(Whh (r h) + Wxh x + b_h) z + h (1 - z)
    z = torch.sigmoid(both(p, "z", x, h))
    r = torch.sigmoid(x + linear(h, p["U_r"], p["b_r"]))
    return (torch.lerp(h, torch.tanh(both(p, "g", x, r * h)), z),)


def mut3(p: Params, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    # z = s(Wxz x + Whz tanh(h) + b_z);  r = s(Wxr x + Whr h + b_r);  h' as in MUT2
    z = torch.sigmoid(both(p, "z", x, torch.tanh(h)))
    r = torch.sigmoid(both(p, "r", x, h))
    return (torch.lerp(h, torch.tanh(both(p, "g", x, r * h)), z),)


# Greff et al. 2015. y is the output, z the block input (its parameters end in _g) -----------------


def _greff_gate(p: Params, gate: str, x: Tensor, y: Tensor, peephole: Tensor) -> Tensor:
    return torch.sigmoid(torch.addcmul(both(p, gate, x, y), p[f"p_{gate}"], peephole))


def lstm_peephole(p: Params, x: Tensor, y: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    z = torch.tanh(both(p, "g", x, y))
    i = _greff_gate(p, "i", x, y, c)
    f = _greff_gate(p, "f", x, y, c)
    c_new = z * i + c * f
    o = _greff_gate(p, "o", x, y, c_new)
    return torch.tanh(c_new) * o, c_new


def nig(p: Params, x: Tensor, y: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    z = torch.tanh(both(p, "g", x, y))
    f = _greff_gate(p, "f", x, y, c)
    c_new = z + c * f  # i = 1
    o = _greff_gate(p, "o", x, y, c_new)
    return torch.tanh(c_new) * o, c_new


def nfg(p: Params, x: Tensor, y: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    z = torch.tanh(both(p, "g", x, y))
    i = _greff_gate(p, "i", x, y, c)
    c_new = z * i + c  # f = 1
    o = _greff_gate(p, "o", x, y, c_new)
    return torch.tanh(c_new) * o, c_new


def nog(p: Params, x: Tensor, y: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    z = torch.tanh(both(p, "g", x, y))
    i = _greff_gate(p, "i", x, y, c)
    f = _greff_gate(p, "f", x, y, c)
    c_new = z * i + c * f
    return torch.tanh(c_new), c_new  # o = 1


def niaf(p: Params, x: Tensor, y: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    z = both(p, "g", x, y)  # g(x) = x
    i = _greff_gate(p, "i", x, y, c)
    f = _greff_gate(p, "f", x, y, c)
    c_new = z * i + c * f
    o = _greff_gate(p, "o", x, y, c_new)
    return torch.tanh(c_new) * o, c_new


def noaf(p: Params, x: Tensor, y: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    z = torch.tanh(both(p, "g", x, y))
    i = _greff_gate(p, "i", x, y, c)
    f = _greff_gate(p, "f", x, y, c)
    c_new = z * i + c * f
    o = _greff_gate(p, "o", x, y, c_new)
    return c_new * o, c_new  # h(x) = x


def cifg(p: Params, x: Tensor, y: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    z = torch.tanh(both(p, "g", x, y))
    i = _greff_gate(p, "i", x, y, c)
    c_new = torch.lerp(c, z, i)  # f = 1 - i
    o = _greff_gate(p, "o", x, y, c_new)
    return torch.tanh(c_new) * o, c_new


def np(p: Params, x: Tensor, y: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    z = torch.tanh(both(p, "g", x, y))
    i, f, o = (torch.sigmoid(both(p, gate, x, y)) for gate in "ifo")  # no peepholes
    c_new = z * i + c * f
    return torch.tanh(c_new) * o, c_new


def fgr(
    p: Params, x: Tensor, y: Tensor, c: Tensor, i: Tensor, f: Tensor, o: Tensor
) -> tuple[Tensor, ...]:
    # i_t = s(Wi x + Ri y + pi c_{t-1} + bi + Rii i_{t-1} + Rfi f_{t-1} + Roi o_{t-1}); likewise f_t
    # and o_t, the latter with c_{t-1} as printed. One matrix (H, 3H) a gate here.
    gates = torch.cat([i, f, o], dim=1)
    z = torch.tanh(both(p, "g", x, y))
    new = []
    for to in "ifo":
        recurrence = torch.cat([p[f"U_{source}{to}"] for source in "ifo"], dim=1)
        new.append(torch.sigmoid(both(p, to, x, y) + linear(gates, recurrence) + p[f"p_{to}"] * c))
    i_new, f_new, o_new = new
    c_new = z * i_new + c * f_new
    return torch.tanh(c_new) * o_new, c_new, i_new, f_new, o_new


# Zilly, Srivastava, Koutník, Schmidhuber 2017. s_0 is the previous output, U their R -------------


def rhn(p: Params, x: Tensor, s: Tensor, depth: int = 5) -> tuple[Tensor, ...]:
    # h_l = tanh(W_H x I{l=1} + R_Hl s_{l-1} + b_Hl);  t_l = s(W_T x I{l=1} + R_Tl s_{l-1} + b_Tl)
    # s_l = h_l t_l + s_{l-1} c_l, c_l = 1 - t_l;  y = s_L
    for layer in range(1, depth + 1):
        h = linear(s, p[f"U_g_{layer}"], p[f"b_g_{layer}"])
        t = linear(s, p[f"U_t_{layer}"], p[f"b_t_{layer}"])
        if layer == 1:
            h, t = h + linear(x, p["W_g"]), t + linear(x, p["W_t"])
        s = torch.lerp(s, torch.tanh(h), torch.sigmoid(t))
    return (s,)


# van der Westhuizen, Lasenby 2018 -----------------------------------------------------------------


def janet(p: Params, x: Tensor, c: Tensor, beta: float = 1.0) -> tuple[Tensor, ...]:
    # s = Wf x + Uf h + bf;  c~ = tanh(.);  c' = s(s) c + (1 - s(s - beta)) c~;  h' = c'
    s = both(p, "f", x, c)
    candidate = torch.tanh(both(p, "g", x, c))
    return (torch.sigmoid(s) * c + torch.sigmoid(beta - s) * candidate,)  # 1 - s(a) = s(-a)


#: The cell of each name. LSTM-b is the LSTM; only its start differs.
STEPS: dict[str, Step] = {
    "tanh_rnn": tanh_rnn,
    "lstm": lstm,
    "lstm_jozefowicz": lstm_jozefowicz,
    "lstm_i": lstm_i,
    "lstm_f": lstm_f,
    "lstm_o": lstm_o,
    "lstm_b": lstm,
    "lstm_peephole": lstm_peephole,
    "gru": gru,
    "gru_reset_after": gru_reset_after,
    "mut1": mut1,
    "mut2": mut2,
    "mut3": mut3,
    "nig": nig,
    "nfg": nfg,
    "nog": nog,
    "niaf": niaf,
    "noaf": noaf,
    "cifg": cifg,
    "np": np,
    "fgr": fgr,
    **{f"rhn{depth}": partial(rhn, depth=depth) for depth in (2, 5, 10)},
    "janet": janet,
    **reference_cells_light.STEPS,
    **reference_cells_more.STEPS,
}

#: The cells whose output is none of their states.
EMITS = reference_cells_light.EMITS | reference_cells_more.EMITS
