"""What the Qwen families share: stacks in which some layers are mixtures and the others dense."""

from typing import NamedTuple

from moejax.attention.gqa import Gqa
from moejax.config import BlockConfig, ModelConfig, require
from moejax.ffn.dense import Dense
from moejax.ffn.moe import Moe
from moejax.interop.hf import turns
from moejax.interop.hf.fields import Fields
from moejax.interop.hf.tensor_map import Turn, layers
from moejax.routers.select.top_k import TopK


def are_sparse(fields: Fields, num_layers: int) -> list[bool]:
    """Of every layer, whether it is a mixture."""
    dense, step = (
        fields.take("mlp_only_layers", list, []),
        fields.take("decoder_sparse_step", int, 1, least=1),
    )
    return [at not in dense and (at + 1) % step == 0 for at in range(num_layers)]


def selector(fields: Fields, k: int) -> TopK:
    """The choice of experts; `k` of them in a file that says nothing."""
    k = fields.take("num_experts_per_tok", int, k)
    return TopK(k, renormalise=fields.take("norm_topk_prob", bool, False))


class Parts(NamedTuple):
    """What the layers of a model are made of, one of each kind; that all are alike is checked by reading."""

    attn: Gqa
    moe: Moe
    dense: Dense | None

    @property
    def k(self) -> int:
        return self.moe.selector.k


def parts(m: ModelConfig, family: str) -> Parts:
    """Parts of a model of the family.

    Raises:
      UsageError: a layer is of another kind, or none is a mixture.
    """
    blocks = [block for _, block, _ in layers(m)]
    found = {}
    for block in blocks:
        for part in (block.attn, block.ffn):
            name = type(part).__name__
            require(
                isinstance(part, Gqa | Moe | Dense),
                f"a layer has {name}; a {family} has Gqa and Moe or Dense",
            )
            found.setdefault(type(part), part)
    require(Gqa in found and Moe in found, f"no layer is a mixture; a {family} has at least one")
    chosen = type(found[Moe].selector)
    require(chosen is TopK, f"ffn.selector is {chosen.__name__}; a {family} has TopK")
    return Parts(found[Gqa], found[Moe], found.get(Dense))


def write(m: ModelConfig, parts: Parts) -> dict:
    """The fields of the model `m` that these families share."""
    attn, moe = parts.attn, parts.moe
    dense = [at for at, (_, block, _) in enumerate(layers(m)) if isinstance(block.ffn, Dense)]
    found = {
        "vocab_size": m.vocab,
        "hidden_size": m.width,
        "num_hidden_layers": m.num_layers,
        "num_attention_heads": attn.num_heads,
        "num_key_value_heads": attn.num_kv_heads,
        "head_dim": attn.head_width,
        "num_experts": moe.num_experts,
        "num_experts_per_tok": parts.k,
        "norm_topk_prob": moe.selector.renormalise,
        "moe_intermediate_size": moe.hidden,
        "mlp_only_layers": dense,
        "decoder_sparse_step": 1,
        "rms_norm_eps": m.norm_eps,
        "tie_word_embeddings": m.tied,
        "hidden_act": "silu",
    }
    return found if parts.dense is None else found | {"intermediate_size": parts.dense.hidden}


def layer(block: BlockConfig) -> tuple[Turn, ...]:
    """The tensors of a layer, without those of a shared expert."""
    ends = (*turns.norms(), *turns.attention(block.attn))
    if isinstance(block.ffn, Dense):
        return (*ends, *turns.mlp(block.ffn))
    return (*ends, turns.layer("mlp.gate.weight", "ffn/score/w", "DE->ED"), *turns.experts())
