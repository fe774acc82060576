"""Cells without gates and with light gates a second time, from their papers' equations.

Each function is one time step, as in `reference_cells.py`; the comments give the equations in each
paper's own letters.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear, softplus

from tests.cellgraph.reference_cells_base import Params, Step, both, of_x

# Without gates ------------------------------------------------------------------------------------


def jordan(p: Params, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    # h_t = s(W x_t + U y_{t-1} + b);  y_t = s(V h_t + c)
    hidden = torch.sigmoid(both(p, "g", x, y))
    return (torch.sigmoid(linear(hidden, p["V_y"], p["b_y"])),)


def irnn(p: Params, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    return (torch.clamp(both(p, "h", x, h), min=0),)


def indrnn(p: Params, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    # h_t = relu(W x_t + u o h_{t-1} + b)
    return (torch.clamp(torch.addcmul(of_x(p, "h", x), p["u_h"], h), min=0),)


def scrn(p: Params, x: Tensor, h: Tensor, s: Tensor) -> tuple[Tensor, ...]:
    # s_t = (1 - a) B x_t + a s_{t-1};  h_t = s(P s_t + A x_t + R h_{t-1});  y_t = U h_t + V s_t
    s_new = torch.lerp(linear(x, p["W_s"]), s, 0.95)
    h_new = torch.sigmoid(linear(s_new, p["V_h"]) + linear(x, p["W_h"]) + linear(h, p["U_h"]))
    return linear(h_new, p["U_y"]) + linear(s_new, p["V_y"]), h_new, s_new


def fastrnn(p: Params, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    # h~ = tanh(W x + U h + b);  h' = s(alpha) h~ + s(beta) h
    alpha, beta = torch.sigmoid(p["alpha"]), torch.sigmoid(p["beta"])
    return (torch.tanh(both(p, "g", x, h)) * alpha + h * beta,)


def fastgrnn(p: Params, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    # z = s(W x + U h + b_z);  h~ = tanh(W x + U h + b_h);  h' = (s(zeta)(1 - z) + s(nu)) h~ + z h
    shared = torch.cat([x, h], dim=1) @ torch.cat([p["W_g"], p["U_g"]], dim=1).T
    z, candidate = torch.sigmoid(shared + p["b_z"]), torch.tanh(shared + p["b_g"])
    return (z * h + (torch.sigmoid(p["zeta"]) * (1 - z) + torch.sigmoid(p["nu"])) * candidate,)


# One or two gates ---------------------------------------------------------------------------------


def minimal_rnn(p: Params, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    # z = tanh(W x + b);  u = s(U_h h + U_z z + b_u);  h' = u h + (1 - u) z
    z = torch.tanh(of_x(p, "z", x))
    u = torch.sigmoid(linear(h, p["U_u"], p["b_u"]) + linear(z, p["V_u"]))
    return (torch.lerp(z, h, u),)


def ugrnn(p: Params, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    # c = tanh(.);  g = s(.);  h' = g h + (1 - g) c
    return (torch.lerp(torch.tanh(both(p, "g", x, h)), h, torch.sigmoid(both(p, "z", x, h))),)


def intersection_rnn(p: Params, x: Tensor, y: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    # y_in = relu(.);  h_in = tanh(.);  y = g_y x + (1 - g_y) y_in;  h' = g_h h + (1 - g_h) h_in
    y_in, h_in = torch.relu(both(p, "p", x, h)), torch.tanh(both(p, "g", x, h))
    g_y, g_h = (torch.sigmoid(both(p, gate, x, h)) for gate in "if")
    return torch.lerp(y_in, x, g_y), torch.lerp(h_in, h, g_h)


def ran(p: Params, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    # c~ = W x;  i, f = s(.);  c' = i c~ + f c;  h' = tanh(c')
    i, f = (torch.sigmoid(both(p, gate, x, h)) for gate in "if")
    c_new = torch.addcmul(f * c, i, linear(x, p["W_g"]))
    return torch.tanh(c_new), c_new


def atr(p: Params, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    # p = W x;  q = U h;  i = s(p + q);  f = s(p - q);  h' = i p + f h
    of_input, of_state = linear(x, p["W_p"]), linear(h, p["U_q"])
    i, f = torch.sigmoid(torch.stack([of_input + of_state, of_input - of_state]))
    return (i * of_input + f * h,)


def cfn(p: Params, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    # theta, eta = s(.);  h' = theta tanh(h) + eta tanh(W x)
    theta, eta = torch.sigmoid(both(p, "f", x, h)), torch.sigmoid(both(p, "i", x, h))
    return (theta * torch.tanh(h) + eta * torch.tanh(linear(x, p["W_g"])),)


def _mgu(p: Params, x: Tensor, h: Tensor, before: Tensor) -> tuple[Tensor, ...]:
    # f = s(before);  h~ = tanh(W x + U (f h) + b);  h' = (1 - f) h + f h~
    f = torch.sigmoid(before)
    return (torch.lerp(h, torch.tanh(both(p, "g", x, f * h)), f),)


def mgu(p: Params, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    return _mgu(p, x, h, both(p, "f", x, h))


def mgu1(p: Params, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    return _mgu(p, x, h, linear(h, p["U_f"], p["b_f"]))


def mgu2(p: Params, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    return _mgu(p, x, h, linear(h, p["U_f"]))


def mgu3(p: Params, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    return _mgu(p, x, h, p["b_f"].expand_as(h))


def _gated_unit(p: Params, x: Tensor, h: Tensor, r: Tensor, z: Tensor) -> tuple[Tensor, ...]:
    # Dey and Salem: h~ = tanh(W x + U (r h) + b);  h' = (1 - z) h + z h~
    candidate = torch.tanh(both(p, "g", x, torch.sigmoid(r) * h))
    return (torch.lerp(h, candidate, torch.sigmoid(z)),)


def gru1(p: Params, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    return _gated_unit(p, x, h, linear(h, p["U_r"], p["b_r"]), linear(h, p["U_z"], p["b_z"]))


def gru2(p: Params, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    return _gated_unit(p, x, h, linear(h, p["U_r"]), linear(h, p["U_z"]))


def gru3(p: Params, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    return _gated_unit(p, x, h, p["b_r"].expand_as(h), p["b_z"].expand_as(h))


def miru1(p: Params, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    # r = s(.);  h~ = tanh(W x + U (r h) + b);  h' = lambda h + (1 - lambda) h~, lambda = 0.5
    r = torch.sigmoid(both(p, "r", x, h))
    return ((h + torch.tanh(both(p, "g", x, r * h))) / 2,)


def miru2(p: Params, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    # h~ = tanh(W x + U (theta h) + b);  h' = lambda h + (1 - lambda) h~, both 0.5
    return ((h + torch.tanh(both(p, "g", x, h / 2))) / 2,)


def ligru(p: Params, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    # z = s(.);  h~ = relu(.);  h' = z h + (1 - z) h~
    return (torch.lerp(torch.relu(both(p, "g", x, h)), h, torch.sigmoid(both(p, "z", x, h))),)


def lightru(p: Params, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    # h~ = tanh(W x);  f = s(.);  h' = (1 - f) h + f h~
    return (torch.lerp(h, torch.tanh(linear(x, p["W_g"])), torch.sigmoid(both(p, "f", x, h))),)


def star(p: Params, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    # z = tanh(W x + b);  k = s(.);  h' = tanh((1 - k) h + k z)
    k = torch.sigmoid(both(p, "k", x, h))
    return (torch.tanh(torch.lerp(h, torch.tanh(of_x(p, "g", x)), k)),)


def _hard_sigmoid(a: Tensor) -> Tensor:
    """torch's, whose own backward in float64 multiplies by a sixth rounded to float32."""
    return torch.clamp((a + 3) / 6, 0, 1)


def sgu(p: Params, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    # x_g = W x + b_g;  z_g = tanh(W (x_g h));  z_out = softplus(z_g h);  z = hs(.)
    # h' = (1 - z) h + z z_out
    z_g = torch.tanh(linear(of_x(p, "p", x) * h, p["U_g"]))
    return (torch.lerp(h, softplus(z_g * h), _hard_sigmoid(both(p, "z", x, h))),)


def dsgu(p: Params, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    # as SGU, but z_out = s(W_go (z_g h))
    z_g = torch.tanh(linear(of_x(p, "p", x) * h, p["U_g"]))
    z_out = torch.sigmoid(linear(z_g * h, p["V_y"]))
    return (torch.lerp(h, z_out, _hard_sigmoid(both(p, "z", x, h))),)


def sgrn(p: Params, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    # f = s(W x + U h + b);  i = 1 - f;  h' = tanh(i (W x) + f h)
    f = torch.sigmoid(both(p, "f", x, h))
    return (torch.tanh(torch.lerp(linear(x, p["W_f"]), h, f)),)


def brc(p: Params, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    # a = 1 + tanh(U_a x + w_a h);  c = s(U_c x + w_c h);  h' = c h + (1 - c) tanh(U x + a h)
    a = 1 + torch.tanh(torch.addcmul(linear(x, p["W_a"]), p["u_a"], h))
    c = torch.sigmoid(torch.addcmul(linear(x, p["W_c"]), p["u_c"], h))
    return (torch.lerp(torch.tanh(torch.addcmul(linear(x, p["W_g"]), a, h)), h, c),)


def nbrc(p: Params, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    # as BRC, but W_a h and W_c h with matrices
    a = 1 + torch.tanh(linear(x, p["W_a"]) + linear(h, p["U_a"]))
    c = torch.sigmoid(linear(x, p["W_c"]) + linear(h, p["U_c"]))
    return (torch.lerp(torch.tanh(torch.addcmul(linear(x, p["W_g"]), a, h)), h, c),)


def tau_gru(p: Params, x: Tensor, h: Tensor, delayed: Tensor) -> tuple[Tensor, ...]:
    # u = tanh(W_1 h_n + .);  z = tanh(W_2 h_{n-d} + .);  g, a = s(W h_n + .)
    # h_{n+1} = (1 - g) h_n + g (u + a z), d = 1
    u, z = torch.tanh(both(p, "u", x, h)), torch.tanh(both(p, "g", x, delayed))
    g, a = torch.sigmoid(both(p, "z", x, h)), torch.sigmoid(both(p, "a", x, h))
    return torch.lerp(h, torch.addcmul(u, a, z), g), h


# Oscillators --------------------------------------------------------------------------------------


def cornn(p: Params, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, ...]:
    # z_n = z + dt (tanh(W y + W_z z + V u + b) - gamma y - epsilon z);  y_n = y + dt z_n
    dt, gamma, epsilon = 0.042, 2.7, 4.7
    force = torch.tanh(both(p, "z", x, y) + linear(z, p["V_z"]))
    z_new = torch.add(z, force - gamma * y - epsilon * z, alpha=dt)
    return torch.add(y, z_new, alpha=dt), z_new


def unicornn(p: Params, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, ...]:
    # z_n = z - dt s(c) (tanh(w y + V u + b) + alpha y);  y_n = y + dt s(c) z_n
    # s(c) = 0.5 + 0.5 tanh(c / 2)
    step = 0.19 * (0.5 + 0.5 * torch.tanh(p["b_s"] / 2))
    z_new = z - step * (torch.tanh(torch.addcmul(of_x(p, "z", x), p["u_z"], y)) + 30.65 * y)
    return torch.addcmul(y, step, z_new), z_new


def lem(p: Params, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, ...]:
    # dt_n = s(W_1 y + .);  dt'_n = s(W_2 y + .);  z_n = (1 - dt_n) z + dt_n tanh(W_z y + .)
    # y_n = (1 - dt'_n) y + dt'_n tanh(W_y z_n + .)
    bar, dt = torch.sigmoid(both(p, "i", x, y)), torch.sigmoid(both(p, "f", x, y))
    z_new = torch.lerp(z, torch.tanh(both(p, "z", x, y)), dt)
    return torch.lerp(y, torch.tanh(of_x(p, "g", x) + linear(z_new, p["V_g"])), bar), z_new


def _turned(p: Params, h: Tensor, gamma: float) -> Tensor:
    # (W_h - W_h^T - gamma I) h, of the n (n - 1) / 2 numbers above the diagonal
    upper = torch.triu(p["U_h"] - p["U_h"].T, diagonal=1)
    return h @ (upper.T - upper) - gamma * h


def antisymmetric_rnn(
    p: Params, x: Tensor, h: Tensor, eps: float = 1.0, gamma: float = 0.01
) -> tuple[Tensor, ...]:
    # h_t = h + eps tanh((W_h - W_h^T - gamma I) h + V_h x + b_h)
    return (torch.add(h, torch.tanh(_turned(p, h, gamma) + of_x(p, "h", x)), alpha=eps),)


def antisymmetric_rnn_gated(
    p: Params, x: Tensor, h: Tensor, eps: float = 1.0, gamma: float = 0.01
) -> tuple[Tensor, ...]:
    # z_t = s((W_h - W_h^T - gamma I) h + V_z x + b_z)
    # h_t = h + eps z_t tanh((W_h - W_h^T - gamma I) h + V_h x + b_h)
    turned = _turned(p, h, gamma)
    z = torch.sigmoid(turned + of_x(p, "z", x))
    return (torch.addcmul(h, z, torch.tanh(turned + of_x(p, "h", x)), value=eps),)


STEPS: dict[str, Step] = {
    step.__name__: step
    for step in (
        jordan, irnn, indrnn, scrn, fastrnn, fastgrnn, minimal_rnn, ugrnn, intersection_rnn, ran,
        atr, cfn, mgu, mgu1, mgu2, mgu3, gru1, gru2, gru3, miru1, miru2, ligru, lightru, star, sgu,
        dsgu, sgrn, brc, nbrc, tau_gru, cornn, unicornn, lem, antisymmetric_rnn,
        antisymmetric_rnn_gated,
    )
}  # fmt: skip
EMITS = frozenset({"scrn"})
