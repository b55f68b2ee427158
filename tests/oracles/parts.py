"""What the released models share, in float64 numpy, one text at a time."""

import numpy as np


def silu(x):
    return x / (1 + np.exp(-x))


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def rms_norm(x, scale, eps):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * scale


def turned(x_THA, theta):
    """Rotary positions: value a and value a + A/2 of a head are one complex number."""
    T, _, A = x_THA.shape
    angle_TA = np.arange(T)[:, None] * theta ** (-np.arange(A // 2) * 2 / A)
    z_THA = (x_THA[..., : A // 2] + 1j * x_THA[..., A // 2 :]) * np.exp(1j * angle_TA)[:, None]
    return np.concatenate([z_THA.real, z_THA.imag], -1)


def mixed(q_THA, k_TGA, v_TGC, scale, window=None):
    """Causal attention, one query head and one position after the other; heads flat in the result."""
    T, H, _ = q_THA.shape
    out_THC = np.zeros((T, H, v_TGC.shape[-1]))
    for t, h in np.ndindex(T, H):
        g, first = h * k_TGA.shape[1] // H, 0 if window is None else max(0, t + 1 - window)
        share = softmax(k_TGA[first : t + 1, g] @ q_THA[t, h] * scale)
        out_THC[t, h] = share @ v_TGC[first : t + 1, g]
    return out_THC.reshape(T, -1)


def under(w, prefix):
    """The tensors whose names begin so, by the rest of their names."""
    return {name[len(prefix) + 1 :]: tensor for name, tensor in w.items() if name.startswith(f"{prefix}.")}


def attention(p, x_TD, width, *, scale, theta=None, window=None):
    """Grouped heads of this width, under Llama's names; `theta` None leaves positions out."""
    heads = lambda name: (x_TD @ p[f"{name}_proj.weight"].T).reshape(len(x_TD), -1, width)
    q_THA, k_TGA, v_TGA = heads("q"), heads("k"), heads("v")
    if theta is not None:
        q_THA, k_TGA = turned(q_THA, theta), turned(k_TGA, theta)
    return mixed(q_THA, k_TGA, v_TGA, scale, window) @ p["o_proj.weight"].T


def head_width(config):
    return config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])


def attention_shapes(prefix, config):
    D, A = config["hidden_size"], head_width(config)
    wide, narrow = config["num_attention_heads"] * A, config["num_key_value_heads"] * A
    return {
        f"{prefix}.q_proj.weight": (wide, D),
        f"{prefix}.k_proj.weight": (narrow, D),
        f"{prefix}.v_proj.weight": (narrow, D),
        f"{prefix}.o_proj.weight": (D, wide),
    }


def end_shapes(config):
    V, D = config["vocab_size"], config["hidden_size"]
    head = {} if config["tie_word_embeddings"] else {"lm_head.weight": (V, D)}
    return {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,)} | head


def head(w):
    return w.get("lm_head.weight", w["model.embed_tokens.weight"])
