"""The layers in plain float64 numpy, as loops over tokens: slow, obvious, with no code of the package."""

import numpy as np


def silu(x):
    return x / (1 + np.exp(-x))


def softmax(x):
    shifted = np.exp(x - x.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def rms_norm(x_D, scale_D, eps):
    return x_D / np.sqrt(np.mean(x_D**2) + eps) * scale_D


def layer_norm(x_D, p, eps):
    return (x_D - x_D.mean()) / np.sqrt(np.var(x_D) + eps) * p["scale"] + p["bias"]


NORMS = {
    "rms": rms_norm,
    "rms_plus_one": lambda x_D, w_D, eps: rms_norm(x_D, 1 + w_D, eps),
    "layer": layer_norm,
}


def rotate(x_A, pos, theta):
    """The pair (a, a + A/2) as a complex number, turned by pos * theta^(-2a/A)."""
    half = len(x_A) // 2
    turned = (x_A[:half] + 1j * x_A[half:]) * np.exp(1j * pos * theta ** (-np.arange(half) / half))
    return np.concatenate([turned.real, turned.imag])


def attend(q_BTHA, k_BSGA, v_BSGA, rule, sink_H=None):
    """Attention of every query by itself, zeros where it sees no key; a sink is a key without value."""
    B, T, H, A = q_BTHA.shape
    G = k_BSGA.shape[2]
    out = np.zeros((B, T, H, v_BSGA.shape[-1]))
    for b, t, h in np.ndindex(B, T, H):
        back_S = rule.q_pos_BT[b, t] - rule.k_pos_BS[b]
        seen_S = (back_S >= 0) & rule.k_valid_BS[b] & (rule.k_seg_BS[b] == rule.q_seg_BT[b, t])
        if rule.window is not None:
            seen_S &= back_S < rule.window
        if seen_S.any():
            g = h * G // H
            score_S = k_BSGA[b, seen_S, g] @ q_BTHA[b, t, h] / np.sqrt(A)
            share_S = softmax(score_S if sink_H is None else np.append(score_S, sink_H[h]))
            out[b, t, h] = share_S[: len(score_S)] @ v_BSGA[b, seen_S, g]
    return out


def glu(p, x_D):
    """SwiGLU of one token, with the biases and the linear gate that `p` has."""
    product = lambda x, name: x @ p[name] + p.get(f"{name}_bias", 0)
    linear = product(x_D, "linear_gate") if "linear_gate" in p else 1
    return product(silu(product(x_D, "gate")) * product(x_D, "up") * linear, "down")


def moe(experts, x_BTD, expert_BTK, gate_BTK):
    """y = sum_k gate_k expert_k(x), token by token; expert E is nowhere."""
    E = len(experts["gate"])
    y_BTD = np.zeros(x_BTD.shape)
    for b, t, k in np.ndindex(expert_BTK.shape):
        e = expert_BTK[b, t, k]
        if e < E:
            y_BTD[b, t] += gate_BTK[b, t, k] * glu({name: w[e] for name, w in experts.items()}, x_BTD[b, t])
    return y_BTD


def soft(p, x_BTD, valid_BT):
    """Soft mixture of experts, row by row, slot by slot; the slots of an expert lie side by side."""
    y_BTD = np.zeros(x_BTD.shape)
    per_expert = p["slots"].shape[1] // len(p["experts"]["gate"])
    for b in np.flatnonzero(valid_BT.any(1)):
        x_TD = x_BTD[b, valid_BT[b]]
        logit_TR = x_TD @ p["slots"]
        x_RD = softmax(logit_TR.T) @ x_TD
        expert = lambda r: {name: w[r // per_expert] for name, w in p["experts"].items()}
        y_RD = np.stack([glu(expert(r), x_D) for r, x_D in enumerate(x_RD)])
        y_BTD[b, valid_BT[b]] = softmax(logit_TR) @ y_RD
    return y_BTD


def duo(p, x_BTD, valid_BT):
    """The likeliest of small, big and skip, token by token."""
    y_BTD = np.zeros(x_BTD.shape)
    for b, t in np.argwhere(valid_BT):
        best = np.argmax(x_BTD[b, t] @ p["choice"]["w"])
        if best < 2:
            module = p[("small", "big")[best]]
            y_BTD[b, t] = glu({name: w[0] for name, w in module.items()}, x_BTD[b, t])
    return y_BTD
