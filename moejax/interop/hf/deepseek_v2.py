"""DeepSeek-V2 (arXiv 2405.04434), Lite too: gates are not renormalised, groups go by their best expert."""

from moejax.config import ModelConfig
from moejax.interop.hf import deepseek
from moejax.interop.hf.family import Family, kind
from moejax.routers.select.group_limited import GroupLimited
from moejax.routers.select.top_k import TopK


def read(fields) -> ModelConfig:
    fields.fixed("mlp_bias", False)
    fields.fixed("rope_interleave", True)
    # transformers and DeepSeek's own program disagree on what True would mean; no model of theirs has it.
    fields.fixed("norm_topk_prob", False)
    return deepseek.read(fields, "softmax", _read_selector, dense_layers=0, shared=2)


def _read_selector(fields):
    gates = {"renormalise": False, "scale": fields.take("routed_scaling_factor", float, 1.0)}
    k = fields.take("num_experts_per_tok", int)
    if fields.choose("topk_method", {"greedy": False, "group_limited_greedy": True}, "greedy"):
        return GroupLimited(k, fields.take("n_group", int), fields.take("topk_group", int), best=1, **gates)
    fields.unused("n_group", "topk_group")  # files of greedy models give them too
    return TopK(k, **gates)


def write(m: ModelConfig) -> dict:
    found, selector = deepseek.write(m, "deepseek_v2"), deepseek.selector(m)
    if isinstance(selector, GroupLimited):
        found |= {"n_group": selector.num_groups, "topk_group": selector.keep_groups}
        found["topk_method"] = "group_limited_greedy"
    else:
        kind(selector, TopK, "deepseek_v2")
        found["topk_method"] = "greedy"
    return found | {"routed_scaling_factor": selector.scale, "num_experts_per_tok": selector.k}


FAMILY = Family("deepseek_v2", "DeepseekV2ForCausalLM", read, write, deepseek.tensor_map)
