"""DeepSeek-V3 (arXiv 2412.19437) and R1: sigmoid scores, a corrected choice, groups by their best two."""

import dataclasses
import logging

from moejax.config import ModelConfig
from moejax.interop import block_fp8
from moejax.interop.hf import deepseek
from moejax.interop.hf.family import Family, kind
from moejax.interop.hf.tensor_map import TensorMap
from moejax.routers.select.group_limited import GroupLimited

# How many layers after the last one predict the token after the next, as DeepSeek and transformers call it.
PREDICTORS = ("num_nextn_predict_layers", "num_mtp_layers")
MOST_PREDICTORS = 4


def read(fields) -> ModelConfig:
    fields.fixed("topk_method", "noaux_tc")
    _check_packing(fields)
    counts = [fields.take(name, int, 0, least=0, most=MOST_PREDICTORS) for name in PREDICTORS]
    if any(counts):
        logging.getLogger(__name__).warning(
            "%s: layers that predict the token after the next are not read; the model does not need them",
            fields.where,
        )
    return deepseek.read(fields, "sigmoid", _read_selector, dense_layers=3, shared=1)


def _check_packing(fields) -> None:
    """Which matrices are packed is seen by their names."""
    packing = fields.part("quantization_config")
    if packing is not None:
        packing.choose("quant_method", {"fp8": None})
        packing.fixed("fmt", "e4m3")
        packing.fixed("weight_block_size", [block_fp8.BLOCK] * 2)
        # Activations are not packed here, and the scales' own dtype says how they are stored.
        packing.unused("activation_scheme", "modules_to_not_convert", "scale_fmt")
        packing.done()


def _read_selector(fields):
    return GroupLimited(
        k=fields.take("num_experts_per_tok", int, 8),
        num_groups=fields.take("n_group", int, 8),
        keep_groups=fields.take("topk_group", int, 4),
        renormalise=fields.take("norm_topk_prob", bool, True),
        scale=fields.take("routed_scaling_factor", float, 2.5),
        correction=True,
    )


def write(m: ModelConfig) -> dict:
    found = deepseek.write(m, "deepseek_v3")
    selector = kind(deepseek.selector(m), GroupLimited, "deepseek_v3")
    return found | {
        "num_experts_per_tok": selector.k,
        "n_group": selector.num_groups,
        "topk_group": selector.keep_groups,
        "norm_topk_prob": selector.renormalise,
        "routed_scaling_factor": selector.scale,
        "num_nextn_predict_layers": 0,
    }


def tensor_map(m: ModelConfig) -> TensorMap:
    table = deepseek.tensor_map(m)
    predictors = (f"model.layers.{m.num_layers + i}.*" for i in range(MOST_PREDICTORS))
    return dataclasses.replace(table, ignored=(*table.ignored, *predictors))


FAMILY = Family("deepseek_v3", "DeepseekV3ForCausalLM", read, write, tensor_map, view=block_fp8.unpacked)
