"""BlockFFN (arXiv 2507.08771) in float64 numpy, under the names of its release."""

import numpy as np

from tests.oracles import parts


def shapes(config):
    """Of every tensor of a release with this config.json."""
    D, E, F = config["hidden_size"], config["num_experts"], config["expert_size"]
    found = parts.end_shapes(config)
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        found |= {f"{at}.{name}.weight": (D,) for name in ("input_layernorm", "post_attention_layernorm")}
        latent = config["attention_type"] == "mla"
        found |= (latent_shapes if latent else parts.attention_shapes)(f"{at}.self_attn", config)
        found |= {f"{at}.mlp.router_proj.weight": (E, D), f"{at}.mlp.router_norm.weight": (E,)}
        found |= {f"{at}.mlp.up_proj": (E * F, D), f"{at}.mlp.down_proj": (D, E * F)}
    return found


def latent_shapes(prefix, config):
    D, H = config["hidden_size"], config["num_attention_heads"]
    Z, R = config["kv_lora_rank"], config["q_lora_rank"]
    plain, turned, C = config["qk_nope_head_dim"], config["qk_rope_head_dim"], D // H
    return {
        f"{prefix}.q_a_proj.weight": (R, D),
        f"{prefix}.q_a_layernorm.weight": (R,),
        f"{prefix}.q_b_proj.weight": (H * (plain + turned), R),
        f"{prefix}.kv_a_proj_with_mqa.weight": (Z + turned, D),
        f"{prefix}.kv_a_layernorm.weight": (Z,),
        f"{prefix}.kv_b_proj.weight": (H * (plain + C), Z),
        f"{prefix}.o_proj.weight": (D, H * C),
    }


def logits(w, config, token_T):
    """[T, V] of one text."""
    eps, num_layers = config["rms_norm_eps"], config["num_hidden_layers"]
    branch = config["scale_depth"] / np.sqrt(num_layers)
    h_TD = w["model.embed_tokens.weight"][token_T] * config["scale_emb"]
    for layer in range(num_layers):
        at = f"model.layers.{layer}"
        x_TD = parts.rms_norm(h_TD, w[f"{at}.input_layernorm.weight"], eps)
        h_TD = h_TD + branch * attention(parts.under(w, f"{at}.self_attn"), x_TD, config)
        x_TD = parts.rms_norm(h_TD, w[f"{at}.post_attention_layernorm.weight"], eps)
        h_TD = h_TD + branch * experts(w, f"{at}.mlp", x_TD, config)
    h_TD = parts.rms_norm(h_TD, w["model.norm.weight"], eps)
    return h_TD / (config["hidden_size"] / config["dim_model_base"]) @ parts.head(w).T


def attention(p, x_TD, config):
    if config["attention_type"] != "mla":
        width = parts.head_width(config)
        return parts.attention(p, x_TD, width, scale=width**-0.5, theta=config["rope_theta"])
    T, H, Z = len(x_TD), config["num_attention_heads"], config["kv_lora_rank"]
    plain, theta = config["qk_nope_head_dim"], config["rope_theta"]
    project = lambda x, name: x @ p[f"{name}.weight"].T
    norm = lambda x, name: parts.rms_norm(x, p[f"{name}.weight"], 1e-6)
    q_THA = project(norm(project(x_TD, "q_a_proj"), "q_a_layernorm"), "q_b_proj").reshape(T, H, -1)
    row_TZ = project(x_TD, "kv_a_proj_with_mqa")
    up_THA = project(norm(row_TZ[:, :Z], "kv_a_layernorm"), "kv_b_proj").reshape(T, H, -1)
    key_THA = np.repeat(parts.turned(row_TZ[:, None, Z:], theta), H, axis=1)
    q_THA = np.concatenate([q_THA[..., :plain], parts.turned(q_THA[..., plain:], theta)], -1)
    k_THA = np.concatenate([up_THA[..., :plain], key_THA], -1)
    return project(parts.mixed(q_THA, k_THA, up_THA[..., plain:], q_THA.shape[-1] ** -0.5), "o_proj")


def experts(w, prefix, x_TD, config):
    """All experts side by side; their weights are the norm of what is positive of the router's logits."""
    E = config["num_experts"]
    positive_TE = np.maximum(x_TD @ w[f"{prefix}.router_proj.weight"].T, 0)
    weight_TE = parts.rms_norm(positive_TE, w[f"{prefix}.router_norm.weight"], config["rms_norm_eps"])
    hidden_TEF = parts.silu(x_TD @ w[f"{prefix}.up_proj"].T).reshape(len(x_TD), E, -1) * weight_TE[..., None]
    return hidden_TEF.reshape(len(x_TD), -1) @ w[f"{prefix}.down_proj"].T
