"""SmallThinker (arXiv 2507.20984) in float64 numpy, under the names of its release."""

import numpy as np

from tests.oracles import parts


def shapes(config):
    """Of every tensor of a release with this config.json."""
    D, F, E = config["hidden_size"], config["moe_ffn_hidden_size"], config["moe_num_primary_experts"]
    found = parts.end_shapes(config)
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        found |= {f"{at}.{name}.weight": (D,) for name in ("input_layernorm", "post_attention_layernorm")}
        found |= parts.attention_shapes(f"{at}.self_attn", config)
        found[f"{at}.block_sparse_moe.primary_router.weight"] = (E, D)
        for e in range(E):
            expert = f"{at}.block_sparse_moe.experts.{e}"
            found |= {f"{expert}.{name}.weight": (F, D) for name in ("gate", "up")}
            found[f"{expert}.down.weight"] = (D, F)
    return found


def logits(w, config, token_T):
    """[T, V] of one text."""
    h_TD, eps = w["model.embed_tokens.weight"][token_T], config["rms_norm_eps"]
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        wanted_TE = h_TD @ w[f"{at}.block_sparse_moe.primary_router.weight"].T  # of the raw stream
        x_TD = parts.rms_norm(h_TD, w[f"{at}.input_layernorm.weight"], eps)
        h_TD = h_TD + parts.attention(
            parts.under(w, f"{at}.self_attn"),
            x_TD,
            config["head_dim"],
            scale=config["head_dim"] ** -0.5,
            theta=config["rope_theta"] if config["rope_layout"][layer] else None,
            window=config["sliding_window_size"] if config["sliding_window_layout"][layer] else None,
        )
        x_TD = parts.rms_norm(h_TD, w[f"{at}.post_attention_layernorm.weight"], eps)
        h_TD = h_TD + experts(w, f"{at}.block_sparse_moe.experts", x_TD, wanted_TE, config)
    return parts.rms_norm(h_TD, w["model.norm.weight"], eps) @ parts.head(w).T


def experts(w, prefix, x_TD, wanted_TE, config):
    """The k most wanted; ReGLU."""
    y_TD = np.zeros_like(x_TD)
    for t, wanted_E in enumerate(wanted_TE):
        chosen_K = np.argsort(-wanted_E)[: config["moe_num_active_primary_experts"]]
        for e, weight in zip(chosen_K, weights(wanted_E[chosen_K], config), strict=True):
            gate, up, down = (w[f"{prefix}.{e}.{name}.weight"] for name in ("gate", "up", "down"))
            y_TD[t] += weight * (down @ (np.maximum(gate @ x_TD[t], 0) * (up @ x_TD[t])))
    return y_TD


def weights(logit_K, config):
    if config.get("moe_primary_router_apply_softmax", False):
        return parts.softmax(logit_K)
    score_K = 1 / (1 + np.exp(-logit_K))
    return score_K / score_K.sum()
