"""How far is a learned router from the best module for every token and layer, and is that gap real?

Duo-LLM: A Framework for Studying Adaptive Computation in Large Language Models (Alizadeh et al. 2024,
arXiv 2410.10846). Every layer has a small and a big feed-forward module; all routes of every token are
tried. Claims: with one big layer the best route beats the model that is big everywhere; the best loss falls
with the number of big layers up to half of them, then rises; a learned router comes nowhere near. Measured:
the best route of every token at each budget (whole sequences on one route, as well as token by token), the
best single route, routes at random, and routers that are trained on the frozen modules.

A minimum over many candidates is small even if they mean nothing. So the same figures are given for equally
many routes at every budget, for a model whose weights are disturbed until its losses spread as those of the
routes do, for models of other seeds, and for routes that are chosen by the token's id alone.

Differs from the paper: small models; skips are drawn too in the first stage (one in ten), so that routes with
skips mean something; routers learn on frozen modules, with a sharpness that rises (the paper's temperature
cancels). The paper leaves open on what routes earlier tokens were: the bars are on whole sequences.
"""

import dataclasses

import numpy as np

from configs import base
from moejax.analysis import route_controls
from moejax.analysis.route_oracle import route_table
from moejax.attention.gqa import Gqa
from moejax.bench import domains, duo_routes, held_out, replicas
from moejax.bench.domains import Domains
from moejax.bench.duo_routes import Tried
from moejax.bench.paper import Chart, Curve, Findings, Inputs, Paper
from moejax.bench.report import Bar, Measure, mean, paired, paired_ratio
from moejax.config import OptimConfig, Run, TrainConfig
from moejax.dispatch.local import Local
from moejax.ffn import duo
from moejax.losses.budget import Budget
from moejax.losses.next_token import NextToken

CLAIM = (
    "With one big layer the best route of every token beats the model that is big everywhere; the best loss "
    "is least where about half of the layers are big; a router that keeps to its budget stays far from it"
)
ONE = "best route: one big layer - all big"
FALLS = "best route: half - one big layer"
RISES = "best route: half - all but one big"
ROUTER = "best route, half - learned router"
OFF = "learned router: distance to its budget"
BARS = (
    Bar(ONE, at_most=0.0),
    Bar(FALLS, at_most=0.0),
    Bar(RISES, at_most=0.0),
    Bar(ROUTER, at_most=0.0),
    Bar(OFF, at_most=0.05),
)
UNIT = "nats/token"


@dataclasses.dataclass(frozen=True)
class Settings:
    layers: int = 6
    width: int = 64
    small: int = 16  # the big module is 16 times as wide
    vocab: int = 512
    seq_len: int = 64
    batch_rows: int = 16
    steps: int = 700
    router_steps: int = 150
    alpha: float = 4.0  # weight of the routers' budget
    rows: int = 96  # held-out, on which routes are tried
    greedy_rows: int = 8  # of them, token by token
    noise_rows: int = 32  # of them, with disturbed weights
    most_bytes: int = 1 << 20  # of every domain of text
    seeds: int = 3

    @property
    def half(self) -> int:
        """Big layers of the middle budget."""
        return self.layers // 2


def recipe(s: Settings) -> Run:
    """Stage 1: the module of every token and layer is drawn anew in each step."""
    attn = Gqa(num_heads=4, num_kv_heads=4, head_width=s.width // 4)
    ffn = duo.Duo(s.small, 16 * s.small, duo.Drawn(big=0.45, skip=0.1), Local())
    return Run(
        name="duo_llm_bench",
        model=base.mixtral(s.vocab, attn, ffn, layers=s.layers),
        train=TrainConfig(
            steps=s.steps,
            batch_rows=s.batch_rows,
            seq_len=s.seq_len,
            losses=(NextToken(),),
            optim=OptimConfig(learning_rate=4e-3, warmup_steps=50),
        ),
    )


def measure(s: Settings, inputs: Inputs) -> Findings:
    text = domains.prepare(inputs, s.vocab, s.seq_len, s.most_bytes)
    trained = replicas.train(recipe(s), text, range(s.seeds), inputs.cache)
    batch = held_out.whole_rows(text, s.rows)
    tried = [Tried.of(one, batch) for one in trained]
    note = (
        "routes are tried on whole sequences: the best losses of neighbouring tokens come from different "
        "contexts, so they are a bound and no perplexity that a router could reach"
    )
    return Findings(
        measures=(*_claims(tried, text, s), *_controls(tried, s)),
        settings=text.settings,
        notes=(*text.notes, note),
        charts=(_budgets(tried, s), _layers(tried, s)),
    )


def _claims(tried: list[Tried], text: Domains, s: Settings) -> tuple[Measure, ...]:
    best = {b: [one.oracle.loss(b) for one in tried] for b in range(s.layers + 1)}
    fixed = [one.oracle.fixed(s.half)[0] for one in tried]
    budget = Budget(weight=s.alpha, target=s.half / s.layers)
    routers = [
        duo_routes.with_routers(one.model, text.train, s.router_steps, budget, s.batch_rows, one.seed)
        for one in tried
    ]
    chosen = [duo_routes.routed(router, tried[0].batch) for router in routers]
    mixed = [duo_routes.routed(router, tried[0].batch, mixed=True)[0].mean() for router in routers]
    router, share = [loss_N.mean() for loss_N, _ in chosen], [share for _, share in chosen]
    drawn = [one.at_random(s.half) for one in tried]
    return (
        paired(ONE, best[1], best[s.layers], UNIT, "lower"),
        paired(FALLS, best[s.half], best[1], UNIT, "lower"),
        paired(RISES, best[s.half], best[s.layers - 1], UNIT, "lower"),
        paired(ROUTER, best[s.half], router, UNIT, "lower"),
        mean(OFF, [abs(x - budget.target) for x in share], "share", "lower"),
        mean("all big", best[s.layers], UNIT, "lower"),
        mean("all small", best[0], UNIT, "lower"),
        mean("best route of all", [one.oracle.loss() for one in tried], UNIT, "lower"),
        mean("best route, half", best[s.half], UNIT, "lower"),
        mean("one best route for all tokens, half", fixed, UNIT, "lower"),
        mean(
            "one random route for all tokens, half",
            [x.of_budget(s.half).mean() for x in tried],
            UNIT,
            "lower",
        ),
        mean("a random route for each token, half", drawn, UNIT, "lower"),
        mean("learned router", router, UNIT, "lower"),
        mean("learned router: share of big layers", share, "share"),
        paired("learned router: choosing - mixing", router, mixed, UNIT, "lower"),
        paired("learned router - one best route, half", router, fixed, UNIT, "lower"),
        paired("learned router - random routes of tokens", router, drawn, UNIT, "lower"),
    )


def _controls(tried: list[Tried], s: Settings) -> tuple[Measure, ...]:
    few = {b: [one.equally_many(b) for one in tried] for b in range(1, s.layers)}
    noise, routes = zip(*[_noise(one, s) for one in tried], strict=True)
    skipping = [one.skipping(s.half) for one in tried]
    all_big = [one.oracle.loss(s.layers) for one in tried]
    return (
        paired("equally many routes: half - one big layer", few[s.half], few[1], UNIT),
        paired("equally many routes: half - all but one big", few[s.half], few[s.layers - 1], UNIT),
        mean("gain that the token's id gives", [one.share_of_gain_by_id() for one in tried], "share"),
        paired_ratio("gain of disturbed weights / of routes", noise, routes),
        _other_seeds(tried, s),
        _token_by_token("one big layer", 1, tried, s),
        _token_by_token("half", s.half, tried, s),
        paired("best route that skips half, the rest big - all big", skipping, all_big, UNIT, "lower"),
        *(_depth(tried, b) for b in sorted({s.half - 1, s.half, s.half + 1})),
    )


def _noise(tried: Tried, s: Settings) -> tuple[float, float]:
    """What the best of equally many gains over their mean: models under noise, routes with half big."""
    rows, routes_RN = tried.rows(s.noise_rows), tried.of_budget(s.half, s.noise_rows)
    spread = route_controls.spread(routes_RN)
    noise_CN = duo_routes.losses_under_noise(tried.model, rows, len(routes_RN), spread, tried.seed)
    return _gain(noise_CN), _gain(routes_RN)


def _gain(loss_RN: np.ndarray) -> float:
    return float(loss_RN.mean() - loss_RN.min(axis=0).mean())


def _other_seeds(tried: list[Tried], s: Settings) -> Measure:
    """The same of models that are big everywhere, one per seed, against as many routes of one model."""
    pool = _gain(np.concatenate([one.of_budget(s.layers) for one in tried]))
    halves = [one.of_budget(s.half) for one in tried]
    routes = [x.mean() - route_controls.expected_best(x, len(tried)).mean() for x in halves]
    return Measure("gain of other seeds / of as many routes", pool / float(np.mean(routes)), "x", "neither")


def _token_by_token(name: str, budget: int, tried: list[Tried], s: Settings) -> Measure:
    routes = route_table(s.layers, budget)
    best = [duo_routes.losses_token_by_token(x.model, x.rows(s.greedy_rows), routes).mean() for x in tried]
    all_big = [one.of_budget(s.layers, s.greedy_rows).mean() for one in tried]
    return paired(f"token by token: {name} - all big", best, all_big, UNIT, "lower")


def _depth(tried: list[Tried], big: int) -> Measure:
    """Mean place of the big layers of the best routes; 0 is the first layer, 1 the last."""
    place_L = np.linspace(0, 1, tried[0].route_RL.shape[1])
    return mean(f"place of {big} big layers", [one.share_big(big) @ place_L / big for one in tried], "depth")


def _budgets(tried: list[Tried], s: Settings) -> Chart:
    counts = tuple(map(float, range(s.layers + 1)))
    figures = {
        "best route of each token": lambda one, b: one.oracle.loss(b),
        "best of equally many routes": lambda one, b: one.equally_many(b),
        "one best route for all": lambda one, b: one.oracle.fixed(b)[0],
        "one random route for all": lambda one, b: float(one.of_budget(b).mean()),
    }
    curves = [
        Curve.of_seeds(name, counts, [[figure(one, b) for b in range(s.layers + 1)] for one in tried])
        for name, figure in figures.items()
    ]
    return Chart("Loss by number of big layers", "big layers", UNIT, tuple(curves))


def _layers(tried: list[Tried], s: Settings) -> Chart:
    layers = tuple(map(float, range(1, s.layers + 1)))
    curves = [
        Curve.of_seeds(f"{b} big layers", layers, [one.share_big(b).tolist() for one in tried])
        for b in sorted({s.half - 1, s.half, s.half + 1})
    ]
    return Chart("Where the best routes are big", "layer", "share of tokens", tuple(curves))


SIZES = {
    "tiny": Settings(
        layers=4, width=16, small=4, vocab=384, seq_len=16, batch_rows=8, steps=20, router_steps=10, rows=12,
        greedy_rows=2, noise_rows=4, most_bytes=1 << 16,
    ),
    "default": Settings(),
    "full": Settings(layers=8, steps=2000, router_steps=400, rows=512, greedy_rows=32, noise_rows=128),
    "gpu": Settings(
        layers=12, width=256, small=64, vocab=2048, seq_len=128, batch_rows=64, steps=10_000,
        router_steps=2000, rows=64, greedy_rows=16, noise_rows=32, seeds=5,
    ),
}  # fmt: skip
PAPER = Paper(
    title="Duo-LLM (Alizadeh et al. 2024, arXiv 2410.10846)",
    claim=CLAIM,
    baseline="the model that is big everywhere; the best routes with other budgets; a learned router",
    bars=BARS,
    sizes=SIZES,
    measure=measure,
)
