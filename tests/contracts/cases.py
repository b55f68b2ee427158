"""One row per strategy of each seam; a new technique is one row, and every contract of its seam holds for it.

Router rows are made for `NUM_EXPERTS` experts. No other dim of a router's arrays has that length in the
suites, so an axis as long as it is the expert axis.
"""

import pytest

from moejax.attention.gqa import Gqa
from moejax.attention.mla import Mla
from moejax.config import BlockConfig, Group
from moejax.dispatch.adaptive import Adaptive, Mode
from moejax.dispatch.all_to_all import RaggedAllToAll
from moejax.dispatch.cells import FixedCell
from moejax.dispatch.local import Local
from moejax.ffn.dense import Dense
from moejax.ffn.duo import Duo, Learned
from moejax.ffn.moe import Moe
from moejax.ffn.soft import Soft
from moejax.losses.balance import GlobalBalance, MicroBatchBalance, SequenceBalance
from moejax.losses.budget import Budget
from moejax.losses.gshard import GShard
from moejax.losses.load_importance import LoadImportance
from moejax.losses.locality import ActivationLocality, ChunkSparsity
from moejax.losses.loss_free import LossFreeBias
from moejax.losses.next_token import NextToken
from moejax.losses.tsallis import KeptMassBalance, TsallisEntropy
from moejax.losses.z_loss import RouterZ
from moejax.ops.rope import Yarn
from moejax.routers.score.cosine import Cosine
from moejax.routers.score.linear import Linear
from moejax.routers.score.noisy import Noisy
from moejax.routers.score.pre_attention import PreAttention
from moejax.routers.score.pregated import Pregated
from moejax.routers.score.recurrent import Recurrent
from moejax.routers.score.token_graph import AttentionAware, SimilarityAware
from moejax.routers.select.capacity import Capacity
from moejax.routers.select.entropy import TsallisHybrid
from moejax.routers.select.expert_choice import ExpertChoice
from moejax.routers.select.group_limited import GroupLimited
from moejax.routers.select.relu_norm import ReluNorm
from moejax.routers.select.sparse_mixer import SparseMixer
from moejax.routers.select.top_k import TopK
from moejax.routers.select.top_p import TopP
from moejax.surgery.score.expert_utility import ExpertUtility
from moejax.surgery.score.random import Random
from moejax.surgery.score.router_means import AllLogits, Frequency, MeanGate
from moejax.training.router_meter import RouterMeter

NUM_EXPERTS = 5

SCORERS = {
    "linear_softmax": Linear(),
    "linear_sigmoid": Linear("sigmoid"),
    "linear_sqrt_softplus_bias": Linear("sqrt_softplus", bias=True),
    "linear_relu": Linear("relu"),
    "linear_noise": Linear(noise=1.0),
    "linear_identity": Linear("identity"),
    "noisy": Noisy(),
    "cosine": Cosine(width=3),
    "pre_attention": PreAttention(),
    "recurrent": Recurrent(width=3),
    "recurrent_residual": Recurrent(width=3, cell="lstm", logit_residual=0.5),
    "attention_aware": AttentionAware(),
    "similarity_aware": SimilarityAware(share=0.7),
    "pregated": Pregated(8, (Group((BlockConfig(Gqa(2, 2, 4), Dense(8)),)),)),
}
SELECTORS = {
    "top_1": TopK(1),
    "top_2": TopK(2),
    "top_2_raw_scaled": TopK(2, renormalise=False, scale=2.5),
    "top_2_stop_gradient": TopK(2, scale=2.0, stop_gradient=True),
    "top_all": TopK(NUM_EXPERTS),
    "top_p": TopP(3, p=0.6),
    "top_p_all": TopP(NUM_EXPERTS, p=0.9, renormalise=True),
    "entropy": TsallisHybrid(NUM_EXPERTS),
    "entropy_no_broadcast": TsallisHybrid(3, threshold=1.0, q=2.0),
    "relu_norm": ReluNorm(NUM_EXPERTS),
    "relu_norm_2": ReluNorm(2),
    "group_limited": GroupLimited(2, num_groups=NUM_EXPERTS, keep_groups=3, best=1, correction=True),
    "sparse_mixer": SparseMixer(2),
    "capacity": Capacity(TopK(2), factor=0.6),
    "capacity_row_score": Capacity(TopK(2), group="row", order="score"),
    "capacity_openmoe": Capacity(TopK(2, renormalise=False), factor=0.5, group="global", rule="openmoe"),
    "expert_choice": ExpertChoice(NUM_EXPERTS),
    "expert_choice_2": ExpertChoice(2, group="global"),
    "expert_choice_tokens": ExpertChoice(NUM_EXPERTS, over="tokens"),
}
# Pairs that cannot work together, and words of the reason that is given.
REFUSED = {
    (scorer, selector): "would take every expert"
    for scorer in SCORERS
    for selector in ("relu_norm", "relu_norm_2")
    if scorer != "linear_relu"
} | {
    (scorer, selector): "works on (logits|scores that are not negative)"
    for scorer in SCORERS
    for selector in SELECTORS
    if (scorer == "linear_identity") != (selector == "sparse_mixer")
}
DISPATCHERS = {
    "local": Local(),
    "local_in_chunks": Local(chunks=2),
    "ragged_all_to_all": RaggedAllToAll(),
    "ragged_all_to_all_in_chunks": RaggedAllToAll(chunks=3),
    "fixed_cell": FixedCell(),
    "fixed_cell_in_chunks": FixedCell(chunks=2),
    "fixed_cell_tight": FixedCell(capacity_factor=1.0),
    "two_level": FixedCell(node_size=2),
    "adaptive": Adaptive((Mode(1.0, r=0), Mode(chunks=2))),
}
DROPS = ("fixed_cell_tight",)  # the only ones that may leave rows out
ATTENTIONS = {
    "multi_head": Gqa(num_heads=2, num_kv_heads=2, head_width=4),
    "grouped": Gqa(num_heads=4, num_kv_heads=2, head_width=4),
    "grouped_window": Gqa(num_heads=4, num_kv_heads=2, head_width=4, window=3),
    "with_sinks": Gqa(
        num_heads=4,
        num_kv_heads=2,
        head_width=4,
        window=3,
        rope_scaling=Yarn(4.0, original=8, fast=1.0, slow=0.1),
        scale=0.7,
        bias=True,
        out_bias=True,
        sinks=True,
    ),
    "normed": Gqa(3, 1, 4, rope_theta=None, qk_norm="all", norm="rms_plus_one", clip=1.0),
    "latent": Mla(
        num_heads=4,
        kv_rank=8,
        plain_width=2,
        turned_width=4,
        value_width=2,
        q_rank=6,
        rope_scaling=Yarn(4.0, original=8, fast=1.0, slow=0.1),
        mscale_all_dim=0.7,
    ),
}
FFNS = {
    "dense": Dense(hidden=12),
    "moe": Moe(num_experts=4, hidden=12, scorer=Linear(), selector=TopK(2), dispatch=Local()),
    "moe_with_parts": Moe(4, 12, Linear(), TopK(2), Local(), linear_gate=True, bias=True),
    "soft": Soft(num_experts=2, hidden=12, slots=3, dispatch=Local()),
    "duo": Duo(small=4, big=12, choice=Learned(skip=True), dispatch=Local()),
}
# Every loss is invariant to how a batch is cut into micro-batches, but for those in PER_MICRO_BATCH.
LOSSES = {
    "next_token": NextToken(),
    "global_balance": GlobalBalance(0.5),
    "micro_batch_balance": MicroBatchBalance(0.5),
    "sequence_balance": SequenceBalance(0.5),
    "router_z": RouterZ(0.1),
    "gshard": GShard(0.5),
    "load_importance": LoadImportance(0.5, noise=4.0),
    "tsallis_entropy": TsallisEntropy(0.5),
    "kept_mass_balance": KeptMassBalance(0.5),
    "activation_locality": ActivationLocality(0.5, alpha=10.0),
    "chunk_sparsity": ChunkSparsity(0.5, chunk=2, constant_steps=0, period=1),
    "budget": Budget(0.5, cost=(0.0, 1.0, 0.25, 0.5)),
    "loss_free_bias": LossFreeBias(rate=0.05),
    "router_meter": RouterMeter(),
}
PER_MICRO_BATCH = ("micro_batch_balance",)
KNOWS_EXPERTS_BY_INDEX = ("budget",)  # relabelling the experts changes it
# How much each expert matters for some text.
EXPERT_SCORES = {
    "utility": ExpertUtility(),
    "utility_centred": ExpertUtility(centred=True),
    "first_choice_logit": ExpertUtility(candidates=1, threshold=0.0, transform="raw"),
    "activated_logit": ExpertUtility(threshold=0.0, transform="raw"),
    "frequency": Frequency(),
    "mean_gate": MeanGate(),
    "all_logits": AllLogits(),
    "random": Random(),
}
BLIND = ("random",)  # scores that know nothing of the model


def each(argument: str, rows):
    """Parametrise a test over the names of a seam's rows."""
    return pytest.mark.parametrize(argument, rows)
