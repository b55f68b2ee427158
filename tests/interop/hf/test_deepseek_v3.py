"""DeepSeek-V3, as transformers has it."""

import pytest

from tests.interop import parity
from tests.interop.hf import test_deepseek_v2

TINY = test_deepseek_v2.TINY | {
    "first_k_dense_replace": 1,
    "num_key_value_heads": 4,
    "n_group": 4,
    "topk_group": 2,
    "q_lora_rank": 10,
    "num_nextn_predict_layers": 0,
}
CASES = {
    "groups, YaRN": {
        "max_position_embeddings": 2560,
        "rope_parameters": test_deepseek_v2.YARN | {"mscale": 1.0, "mscale_all_dim": 1.0},
    },
    "halves are turned": {
        "rope_interleave": False,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": False,
        "routed_scaling_factor": 1.0,
        "q_lora_rank": None,
        "n_shared_experts": 2,
        "num_hidden_layers": 2,
    },
}


def config(**own):
    _, transformers = parity.libraries()
    return transformers.DeepseekV3Config(**TINY | own)


@pytest.mark.parametrize("own", CASES.values(), ids=CASES)
def test_parity(own, tmp_path):
    parity.check(config(**own), tmp_path)
