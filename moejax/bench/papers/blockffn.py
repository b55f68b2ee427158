"""Few experts over a whole chunk of tokens, and what that saves when few tokens are computed at once.

BlockFFN: Towards End-Side Acceleration-Friendly Mixture-of-Experts with Chunk-Level Activation Sparsity (Song
et al. 2025, arXiv 2507.08771): a ReLU router of free width, trained with a locality loss (AL) and a chunk
loss (CS), leaves most experts alone not only for a token (TLS) but for 8 tokens together (CLS8). That is what
verifying drafted tokens reads.

Arms of equal size, from equal seeds: the router without extra losses, with both, (in the full size) with one
of them, and top-k of the same experts, with k the mean number of experts that a token of the second arm
takes. Sparsity is measured on held-out text, weights read are counted from it, and a layer of the paper's
0.1B width is timed with the gates of real chunks: the union of the experts against all of them.

Differs from the paper: narrower and shorter; the chunk loss covers 16 tokens, weighs more and moves earlier,
because runs are short; the timed layer has random weights.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from configs import base
from configs import domains as text_shape
from configs.blockffn import block_ffn
from moejax.analysis.routing import sparsity
from moejax.analysis.routing.token_identity import contingency, mutual_information
from moejax.analysis.routing.trace import Layer, RoutingTrace
from moejax.attention.gqa import Gqa
from moejax.bench import domains, held_out, replicas, union_timing
from moejax.bench.moe_variants import with_moe
from moejax.bench.paper import Chart, Curve, Findings, Inputs, Paper
from moejax.bench.report import Bar, Measure, mean, paired, paired_ratio
from moejax.config import OptimConfig, Run, TrainConfig
from moejax.losses.balance import GlobalBalance
from moejax.losses.locality import ActivationLocality, ChunkSparsity
from moejax.losses.next_token import NextToken
from moejax.routers.score.linear import Linear
from moejax.routers.select.top_k import TopK
from pallas_kernels.union_experts.api import expert_weights

NONE, BOTH, LOCAL, CHUNK, TOP_K = "no extra loss", "AL and CS", "AL alone", "CS alone", "top-k"
CHUNKS = (1, 2, 4, 8, 16, 32)  # tokens
VERIFIED = 8  # tokens at once: of CLS8 and of the timing

CLAIM = (
    "with both losses 8 tokens together leave more experts alone than with top-k of as many experts each; "
    "perplexity is not above that of top-k, and at most 3% above that without extra losses; the choice is "
    "not frozen; to compute the union of the experts takes less time than to compute all"
)
SPARSER = f"CLS8: {BOTH} minus {TOP_K}"
PERPLEXITY = f"perplexity: {BOTH} / {TOP_K}"
PRICE = f"perplexity: {BOTH} / {NONE}"
REUSE = f"{BOTH}: reuse"
FASTER = f"{BOTH}: time of the union / of all experts, {VERIFIED} tokens"
BARS = (
    Bar(SPARSER, at_least=0.0),
    Bar(PERPLEXITY, at_most=1.0),
    Bar(PRICE, at_most=1.03),
    Bar(REUSE, at_most=0.95),
    Bar(FASTER, at_most=1.0),
)


APART = (
    f"what the router costs without extra losses is told by perplexity: {NONE} / {TOP_K}; only the rest of "
    "the distance to top-k is the losses'"
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """How much is trained, measured and timed."""

    seeds: int = 3
    steps: int = 600
    batch_rows: int = 8
    layers: int = 3
    width: int = 64
    num_experts: int = 24
    hidden: int = 16  # of an expert
    locality: float = 2e-3  # weight of AL
    chunk: float = 0.1  # weight of CS at the start
    learning_rate: float = 4e-3
    arms: tuple[str, ...] = (NONE, BOTH)  # beside top-k
    rows_each: int = 96  # held-out rows of a domain
    most_bytes: int = 1 << 20  # of a domain
    timed: tuple[int, int] = (768, 64)  # width of the layer that is timed, and of its experts
    timed_chunks: int = 16  # of each seed
    rounds: int = 7


def run_of(cfg: Settings, arm: str) -> Run:
    """The training of an arm with a ReLU router."""
    chunks = ChunkSparsity(cfg.chunk, chunk=16, constant_steps=cfg.steps // 5, period=max(cfg.steps // 20, 1))
    extra = {LOCAL: (ActivationLocality(cfg.locality),), CHUNK: (chunks,)}
    extra |= {NONE: (), BOTH: extra[LOCAL] + extra[CHUNK]}
    heads = cfg.width // 16
    attn = Gqa(num_heads=heads, num_kv_heads=heads // 2, head_width=16)
    return Run(
        name=f"blockffn {arm}",
        model=base.mixtral(text_shape.VOCAB, attn, block_ffn(cfg.num_experts, cfg.hidden), cfg.layers),
        train=TrainConfig(
            steps=cfg.steps,
            batch_rows=cfg.batch_rows,
            seq_len=text_shape.SEQ_LEN,
            losses=(NextToken(), *extra[arm]),
            optim=OptimConfig(cfg.learning_rate, warmup_steps=cfg.steps // 20),
        ),
    )


def top_k_run(cfg: Settings, k: int) -> Run:
    """The same experts, k for every token, with a balance loss."""
    run = run_of(cfg, NONE)
    change = lambda ffn: dataclasses.replace(ffn, scorer=Linear(), selector=TopK(k))
    train = dataclasses.replace(run.train, losses=(NextToken(), GlobalBalance(weight=1e-2)))
    return dataclasses.replace(run, name=f"blockffn {TOP_K}", model=with_moe(run.model, change), train=train)


@dataclasses.dataclass(frozen=True)
class Seen:
    """What one trained model does; means over layers."""

    loss: float  # nats per token
    experts: float  # per token
    sparsity: dict[int, float]  # CLS by tokens in a chunk; that of 1 is TLS
    reuse: float
    never: float  # share of the experts that no token takes
    always: float  # share of those that every token takes
    known: float  # share of the choice of an expert that the token's id tells, mean over experts


def look(trace: RoutingTrace, loss: float) -> Seen:
    """At the routing of held-out text."""
    layers = [_look_at(layer, trace) for layer in trace.layers()]
    figures = {name: float(np.mean([layer[name] for layer in layers])) for name in layers[0] if name != "cls"}
    by_length = {n: float(np.mean([layer["cls"][n] for layer in layers])) for n in CHUNKS}
    return Seen(loss=loss, sparsity=by_length, **figures)


def _look_at(layer: Layer, trace: RoutingTrace) -> dict:
    mask_NE = layer.mask_NE
    share_E = mask_NE.mean(axis=0)
    return {
        "experts": float(mask_NE.sum(axis=1).mean()),
        "cls": {n: sparsity.chunk_sparsity(mask_NE, trace.texts(), n) for n in CHUNKS},
        "reuse": sparsity.reuse(mask_NE, trace.text_N),
        "never": float((share_E == 0).mean()),
        "always": float((share_E == 1).mean()),
        "known": known_from_id(mask_NE, trace.token_N),
    }


def known_from_id(mask_NE: np.ndarray, token_N: np.ndarray) -> float:
    """I(expert taken; id) / H(expert taken), mean over the experts that some tokens take and some do not."""
    shares = []
    for taken_N in mask_NE.T.astype(int):
        information, entropy = mutual_information(contingency(token_N, taken_N, (int(token_N.max()) + 1, 2)))
        shares += [information / entropy] if entropy else []
    return float(np.mean(shares)) if shares else 0.0


def chunk_weights(trace: RoutingTrace, length: int, most: int) -> np.ndarray:
    """Gates [chunks, length, E] of evenly spread chunks of a text, layer by layer in turn."""
    layers = list(trace.layers())
    starts = [own.start for own in trace.texts() if own.stop - own.start >= length]
    starts = starts[:: max(1, len(starts) // most)][:most]
    found = []
    for i, start in enumerate(starts):
        layer, own = layers[i % len(layers)], slice(start, start + length)
        gate_NK = layer.gate_NK[own].astype(np.float32)
        found.append(np.asarray(expert_weights(layer.expert_NK[own], gate_NK, layer.num_experts)))
    return np.stack(found)


def measure(cfg: Settings, inputs: Inputs) -> Findings:
    """Train the arms, match top-k to the sparsity that was reached, look, and time."""
    text = domains.prepare(inputs, text_shape.VOCAB, text_shape.SEQ_LEN, cfg.most_bytes)
    seen: dict[str, list[Seen]] = {}
    weights: dict[str, list[np.ndarray]] = {}

    def add(arm: str, run: Run) -> None:
        trained = replicas.train(run, text, range(cfg.seeds), inputs.cache)
        traces = [held_out.trace(one.model, text, cfg.rows_each) for one in trained]
        seen[arm] = [look(trace, one.held_out_loss) for trace, one in zip(traces, trained, strict=True)]
        weights[arm] = [chunk_weights(trace, VERIFIED, cfg.timed_chunks) for trace in traces]

    for arm in cfg.arms:
        add(arm, run_of(cfg, arm))
    k = min(max(round(np.mean([one.experts for one in seen[BOTH]])), 1), cfg.num_experts)
    add(TOP_K, top_k_run(cfg, k))
    times = [
        union_timing.seconds({arm: weights[arm][i] for arm in (BOTH, TOP_K)}, *cfg.timed, cfg.rounds)
        for i in range(cfg.seeds)
    ]
    measures = (*_of_arms(seen), *_of_pairs(seen), *_of_times(times), *_of_looks(seen))
    notes = (*text.notes, "perplexity is per token, mean over domains of its logarithm", APART)
    return Findings(measures, text.settings | {"k of top-k": k}, notes, (_chart(seen),))


def _of_pairs(seen: Mapping[str, list[Seen]]) -> list[Measure]:
    chunked = {arm: [one.sparsity[VERIFIED] for one in each] for arm, each in seen.items()}
    perplexity = {arm: [math.exp(one.loss) for one in each] for arm, each in seen.items()}
    experts = {arm: [one.experts for one in each] for arm, each in seen.items()}
    return [
        paired(SPARSER, chunked[BOTH], chunked[TOP_K], "share", "higher"),
        paired(f"CLS8: {BOTH} minus {NONE}", chunked[BOTH], chunked[NONE], "share", "higher"),
        paired_ratio(PERPLEXITY, perplexity[BOTH], perplexity[TOP_K], "lower"),
        paired_ratio(PRICE, perplexity[BOTH], perplexity[NONE], "lower"),
        paired_ratio(f"perplexity: {NONE} / {TOP_K}", perplexity[NONE], perplexity[TOP_K], "lower"),
        paired_ratio(f"experts per token: {BOTH} / {TOP_K}", experts[BOTH], experts[TOP_K]),
        paired_ratio(
            f"weights read for {VERIFIED} tokens: {BOTH} / {TOP_K}",
            [1 - share for share in chunked[BOTH]],
            [1 - share for share in chunked[TOP_K]],
            "lower",
        ),
    ]


def _of_times(times: Sequence[Mapping[str, list[float]]]) -> list[Measure]:
    """Of every seed the median over its rounds."""
    typical = {arm: [float(np.median(one[arm])) for one in times] for arm in times[0]}
    every = typical[union_timing.ALL]
    return [
        paired_ratio(FASTER, typical[BOTH], every, "lower"),
        paired_ratio(
            f"{TOP_K}: time of the union / of all experts, {VERIFIED} tokens",
            typical[TOP_K],
            typical[union_timing.ALL],
        ),
        mean("time of all experts", [1e6 * s for s in every], "us", "lower"),
        mean(f"{BOTH}: time of the union", [1e6 * s for s in typical[BOTH]], "us", "lower"),
    ]


def _of_arms(seen: Mapping[str, list[Seen]]) -> list[Measure]:
    measures = []
    for arm, each in seen.items():
        measures += [
            mean(f"{arm}: reuse", [one.reuse for one in each], "share"),
            mean(f"{arm}: TLS", [one.sparsity[1] for one in each], "share", "higher"),
            mean(f"{arm}: CLS8", [one.sparsity[VERIFIED] for one in each], "share", "higher"),
            mean(f"{arm}: CLS32", [one.sparsity[32] for one in each], "share", "higher"),
            mean(f"{arm}: held-out loss", [one.loss for one in each], "nats/token", "lower"),
        ]
    return measures


def _of_looks(seen: Mapping[str, list[Seen]]) -> list[Measure]:
    """Whether sparsity is that of experts which nobody or everybody takes."""
    names = {
        "never": "experts that no token takes",
        "always": "experts that every token takes",
        "known": "share of the choice that the id tells",
    }
    return [
        mean(f"{arm}: {name}", [getattr(one, field) for one in seen[arm]], "share")
        for arm in (BOTH, TOP_K)
        for field, name in names.items()
    ]


def _chart(seen: Mapping[str, list[Seen]]) -> Chart:
    curves = [
        Curve.of_seeds(arm, CHUNKS, [[1 - one.sparsity[n] for n in CHUNKS] for one in each])
        for arm, each in seen.items()
    ]
    title = "Experts that consecutive tokens take together"
    return Chart(title, "tokens", "share of the experts", tuple(curves), log_x=True)


SIZES = {
    "tiny": Settings(
        steps=20, batch_rows=8, layers=2, width=32, num_experts=8, rows_each=8, most_bytes=1 << 17,
        timed_chunks=4, rounds=2,
    ),
    "default": Settings(),
    "full": Settings(
        steps=2000, num_experts=48, arms=(NONE, BOTH, LOCAL, CHUNK), chunk=0.2, rows_each=192, rounds=15,
    ),
    "gpu": Settings(
        seeds=8, steps=20_000, batch_rows=32, layers=12, width=512, num_experts=80, hidden=64,
        rows_each=192,
    ),
}  # fmt: skip
PAPER = Paper(
    title="BlockFFN: Towards End-Side Acceleration-Friendly MoE (Song et al. 2025, arXiv 2507.08771)",
    claim=CLAIM,
    baseline="top-k with as many experts per token; no extra losses; all experts computed",
    bars=BARS,
    sizes=SIZES,
    measure=measure,
)
