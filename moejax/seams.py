"""Every record that passes between parts, and every protocol that a technique can implement.

Read this file first. A technique is a frozen dataclass that subclasses one protocol; methods with a body
here are defaults. The recipe that wants it holds it in its config; nothing else knows its name. Arrays follow
the letters of `moejax.dims`. Expert index E (one past the last) means "nowhere": padding and unused slots are
empty slots with gate 0.
"""

from collections.abc import Callable
from typing import Any, Protocol

import jax
from flax import struct

from moejax.specs import Spec

Array = jax.Array
Tree = Any  # nested dicts of arrays (or of Specs)


@struct.dataclass
class FlatRows:
    """The tokens of many requests in a batch of one row: whose they are, and whose each page is."""

    slot_BT: Array  # i32; the request of each token
    page_QP: Array  # i32; the page that holds positions p * page_size and so on of a slot
    page_size: int = struct.field(pytree_node=False)

    @property
    def length(self) -> int:
        """Positions that a slot can have."""
        return self.page_QP.shape[1] * self.page_size


@struct.dataclass
class Batch:
    """Rows of packed text. Segment 0 is padding; targets are already shifted."""

    token_BT: Array  # i32
    pos_BT: Array  # i32, from 0 in every segment
    seg_BT: Array  # i32, equal within one document
    valid_BT: Array  # bool; absent tokens are not attended, not routed, not cached
    target_BT: Array | None = None  # i32
    weight_BT: Array | None = None  # f32, of each target in the loss; 0 on padding
    extra: dict[str, Array] = struct.field(default_factory=dict)  # leading dim B
    flat: FlatRows | None = None  # the cache has pages, and B = 1
    turns: dict[str, tuple[Array, Array]] = struct.field(default_factory=dict)  # `ops.rope.Rotation.of`


@struct.dataclass
class MaskRule:
    """Which key a query may see: valid, same segment, not later, not beyond the window."""

    q_pos_BT: Array
    q_seg_BT: Array
    k_pos_BS: Array
    k_seg_BS: Array
    k_valid_BS: Array
    window: int | None = struct.field(pytree_node=False, default=None)
    own_row: bool = struct.field(pytree_node=False, default=False)  # key s stands where query s does
    flat: FlatRows | None = None  # keys are in pages; a query's segment is its slot


@struct.dataclass
class Mixing:
    """The attention map of a block, unevaluated: `ops.attention.mix` applies it to other values."""

    q_BTHA: Array
    k_BSGA: Array
    rule: MaskRule


@struct.dataclass
class Side:
    """What a caller adds to one layer's routing; every array broadcasts against [B, E]."""

    bias_BE: Array | None = None  # added to the scores
    prefer_BE: Array | None = None  # added to the choice only, never to the gates
    allow_BE: Array | None = None  # bool; disallowed experts are never chosen


@struct.dataclass
class Memory:
    """What a block remembers: `carry` from the layer below, `cache` from earlier positions.

    Both are dicts. A technique reads and replaces its own entry, `carry[name]` [B, T, ...] as its
    `carry_specs` say, `cache["attn"]` or `cache["ffn"]` [B, S, ...] as its `cache` says; an entry of the
    cache is missing where nothing is remembered.
    """

    carry: dict[str, Tree]
    cache: dict[str, Tree]


@struct.dataclass
class Context:
    """What is the same for every block of a forward pass, and this layer's share of it."""

    batch: Batch
    side: Side
    shared: dict[str, Tree]  # what `prepare` made of the parts that all layers share
    key: Array | None  # None = deterministic
    layers_BT: tuple[Array, Array] | None = (
        None  # (first, one past the last) that each token passes; None = all
    )


@struct.dataclass
class RouteIn:
    """All that a router may look at. Unread fields cost nothing: the compiler drops them."""

    h_BTD: Array  # residual stream at the block's start
    pre_BTD: Array  # normed input of attention
    x_BTD: Array  # normed input of the ffn
    mixing: Mixing
    batch: Batch
    side: Side
    memory: Memory
    shared: dict[str, Tree]
    key: Array | None


@struct.dataclass
class Routing:
    """One layer's decision. E in `expert_BTK` is an empty slot."""

    expert_BTK: Array
    gate_BTK: Array
    kept_BTK: Array  # bool; chosen and really computed
    score_BTE: Array  # affinities after the scorer's activation; of signed scores their softmax
    logit_BTE: Array  # before it
    extra: dict[str, Array] = struct.field(default_factory=dict)


@struct.dataclass
class BlockOut:
    """What a probe may look at after a block."""

    h_BTD: Array
    mixing: Mixing
    routing: Routing | None  # None after a dense ffn


@struct.dataclass
class Output:
    """Result of a forward pass; `logits_BTV` is free when nobody reads it under jit."""

    hidden_BTD: Array
    logits_BTV: Array
    cache: Tree
    probes: tuple  # per group, per block position: what the probe returned, leading dim = repeat

    @property
    def logits(self) -> Array:
        """`logits_BTV` under the name that other libraries use."""
        return self.logits_BTV


class Attention(Protocol):
    """Mixes positions. `moejax.attention`."""

    def specs(self, m) -> Tree: ...
    def check_mesh(self, mesh) -> None: ...  # UsageError unless the MeshConfig can split it
    def mixing_flops(self, length: int) -> float: ...  # per token
    @property
    def rotation(self) -> Any: ...  # of its positions, an `ops.rope.Rotation` or None
    def cache(self, m, num_slots: int, length: int) -> Tree: ...
    def apply(self, p, x_BTD, batch: Batch, memory: Memory) -> tuple[Array, Mixing, Memory]: ...


class Ffn(Protocol):
    """Maps each position. `moejax.ffn`. `causal`: a token's output never depends on later tokens."""

    causal: bool = True
    shared: str = ""  # name of the part that all layers share; "" = none

    def specs(self, m) -> Tree: ...
    def check_mesh(self, mesh) -> None: ...
    def apply(self, p, i: RouteIn) -> tuple[Array, Routing | None, Memory]: ...

    def causal_form(self) -> "Ffn":
        """The layer by which text is generated, with the same parameters; itself where there is no other."""
        return self

    def carry_specs(self, m) -> dict[str, Spec]:
        """What one token takes from layer to layer; every layer of the model agrees on an entry."""
        return {}

    def cache(self, m, num_slots: int, length: int) -> Tree:
        """What decoding keeps of earlier positions, leading dims [num_slots, length]."""
        return {}

    def shared_specs(self, m) -> Tree:
        """Parameters that are stored once for all layers, at params["shared"][self.shared]."""
        return {}

    def shared_cache(self, m, num_slots: int, length: int) -> Tree:
        """What decoding keeps of earlier positions once for all layers."""
        return {}

    def prepare(self, p, m, batch: Batch, cache: Tree | None) -> tuple[Tree, Tree | None]:
        """(what every layer finds at `i.shared[self.shared]`, new cache); runs once per forward pass."""
        return p, cache


class Scorer(Protocol):
    """How much each expert is wanted. `reads` names the fields of RouteIn that may matter.

    The parts that reach beyond a layer are those of Ffn; their specs also depend on the number of experts.
    """

    reads: frozenset[str]
    sparse: bool = False  # a score of 0 says that an expert is not wanted
    signed: bool = False  # scores are logits, of any sign
    shared: str = ""

    def specs(self, m, num_experts: int) -> Tree: ...
    def score(self, p, i: RouteIn) -> tuple[Array, Array, Memory]: ...  # logit_BTE, score_BTE, memory

    def check_mesh(self, mesh) -> None:
        """UsageError unless the MeshConfig can split it."""

    def carry_specs(self, m, num_experts: int) -> dict[str, Spec]:
        return {}

    def cache(self, m, num_experts: int, num_slots: int, length: int) -> Tree:
        return {}

    def shared_specs(self, m, num_experts: int) -> Tree:
        return {}

    def shared_cache(self, m, num_slots: int, length: int) -> Tree:
        return {}

    def prepare(self, p, m, batch: Batch, cache: Tree | None) -> tuple[Tree, Tree | None]:
        return p, cache


class Selector(Protocol):
    """Who gets in, with what gate. `causal`: a token's slots never depend on later tokens.

    A choice that finds no room keeps its expert's name, so that losses count it, and has gate 0; then
    extra["kept_BTK"] says which choices are to be computed.
    """

    causal: bool
    num_slots: int  # K
    signed: bool = False  # it works on signed scores, and on no others

    def check(self, num_experts: int, scorer: Scorer) -> None:
        """Raise UsageError unless it can work on so many experts with the scores of `scorer`."""

    def check_taken(self, num_experts: int, index_LM) -> None:
        """Raise UsageError unless it can work on these experts of each layer alone, in this order."""

    def causal_form(self) -> "Selector":
        """The selector by which text is generated; itself where there is no other."""
        return self

    def specs(self, m, num_experts: int) -> Tree:
        return {}

    def select(self, p, score_BTE, choice_BTE, valid_BT, key) -> tuple[Array, Array, dict[str, Array]]: ...


ExpertFn = Callable[[Tree, Array, Array], Array]  # (p, rows_RD sorted by expert, size_E) -> rows_RD


class Dispatch(Protocol):
    """Moves rows to experts and back; it calls the experts, so overlap and transport stay inside."""

    sliced: bool = False  # the fsdp axis cuts stored experts along their own width, not along the model's
    causal: bool = True  # a row is never dropped for the sake of another

    def __call__(self, expert_fn: ExpertFn, p, x_BTD, expert_BTK, gate_BTK) -> tuple[Array, Array]: ...

    def causal_form(self) -> "Dispatch":
        """The dispatch by which text is generated, experts stored alike; itself where it drops nothing."""
        return self

    def check_mesh(self, mesh) -> None:
        """UsageError unless it can move rows over the MeshConfig."""


class Loss(Protocol):
    """A term of the objective as three pure functions.

    `probe` runs inside a block; `stats` turns what it saw into sums over the tokens of one micro-batch (a
    tree of floats); `total` is a function of those sums over the whole batch, so accumulation cannot change
    it.
    """

    weight: float
    measures_text: bool  # its stats are those of the targets: "nll", in nats, and "weight"

    def init(self, m) -> Tree: ...
    def probe(self, out: BlockOut, batch: Batch) -> Tree: ...
    def stats(self, params, m, probes: tuple, output: Output, batch: Batch) -> Tree: ...
    def total(self, stats: Tree, state: Tree) -> tuple[Array, Tree, dict[str, Array]]: ...
    def side(self, state: Tree) -> tuple | None: ...  # per group, per position: Side with leading repeat
