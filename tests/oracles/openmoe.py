"""OpenMoE (arXiv 2402.01739) in float64 numpy, under the names of its release; nothing is dropped."""

import numpy as np

from tests.oracles import parts


def shapes(config):
    """Of every tensor of a release with this config.json."""
    D, F, E = config["hidden_size"], config["intermediate_size"], config["num_experts"]
    found = parts.end_shapes(config)
    dense = lambda at: {
        f"{at}.gate_proj.weight": (2 * F, D),
        f"{at}.up_proj.weight": (F, D),
        f"{at}.down_proj.weight": (D, F),
    }
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        found |= {f"{at}.{name}.weight": (D,) for name in ("input_layernorm", "post_attention_layernorm")}
        found |= parts.attention_shapes(f"{at}.self_attn", config)
        if not sparse(layer, config):
            found |= dense(f"{at}.mlp")
            continue
        found |= dense(f"{at}.extra_mlp")
        found |= {f"{at}.pre_extra_mlp_layernorm.weight": (D,), f"{at}.mlp.gate_weight": (E, D)}
        found |= {f"{at}.mlp.experts.wi_gate": (E, D, 2 * F), f"{at}.mlp.experts.wi_up": (E, D, F)}
        found[f"{at}.mlp.experts.wo"] = (E, F, D)
    return found


def sparse(layer, config):
    return (layer + 1) % config["moe_layer_interval"] == 0


def logits(w, config, token_T):
    """[T, V] of one text."""
    h_TD, eps = w["model.embed_tokens.weight"][token_T], config["rms_norm_eps"]
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        norm = lambda x_TD, name, at=at: parts.rms_norm(x_TD, w[f"{at}.{name}.weight"], eps)
        x_TD = norm(h_TD, "input_layernorm")
        p = parts.under(w, f"{at}.self_attn")
        h_TD = h_TD + parts.attention(p, x_TD, config["head_dim"], scale=1.0, theta=1e4)
        x_TD = norm(h_TD, "post_attention_layernorm")
        if sparse(layer, config):
            h_TD = h_TD + experts(w, f"{at}.mlp", x_TD, config["router_topk"])
            h_TD = h_TD + dense(w, f"{at}.extra_mlp", norm(h_TD, "pre_extra_mlp_layernorm"))
        else:
            h_TD = h_TD + dense(w, f"{at}.mlp", x_TD)
    return parts.rms_norm(h_TD, w["model.norm.weight"], eps) @ parts.head(w).T


def triple_gate(x, w_gate, w_up, w_down):
    """gate = a silu(b) of the halves (a, b) of x W_gate; (gate * x W_up) W_down."""
    a, b = np.split(x @ w_gate, 2, axis=-1)
    return (a * parts.silu(b) * (x @ w_up)) @ w_down


def dense(w, prefix, x_TD):
    return triple_gate(x_TD, *(w[f"{prefix}.{name}_proj.weight"].T for name in ("gate", "up", "down")))


def experts(w, prefix, x_TD, k):
    """The k likeliest, weighed by their probabilities as they are."""
    y_TD = np.zeros_like(x_TD)
    for t, share_E in enumerate(parts.softmax(x_TD @ w[f"{prefix}.gate_weight"].T)):
        for e in np.argsort(-share_E)[:k]:
            own = (w[f"{prefix}.experts.{name}"][e] for name in ("wi_gate", "wi_up", "wo"))
            y_TD[t] += share_E[e] * triple_gate(x_TD[t], *own)
    return y_TD
