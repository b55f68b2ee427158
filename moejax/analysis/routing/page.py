"""The figures of a trace as one HTML page, each chapter with what its figures mean beside no structure."""

import math

import numpy as np

from moejax.analysis.routing import balance, notes
from moejax.analysis.routing.summary import Locality, Summary
from moejax.analysis.routing.trace import Layer, RoutingTrace
from moejax.report import heat_map
from moejax.report.line_chart import Line, chart
from moejax.report.numbers import plain
from moejax.report.page import escape, none, page, table, tiles

MOST_TOKENS_SHOWN = 24
TONES = "abcd"


def render(summary: Summary, trace: RoutingTrace, token_texts: dict[int, str]) -> str:
    """The page as text.

    Args:
      summary: of `trace`.
      trace: what the heat maps are drawn from.
      token_texts: of the ids in the trace; what is missing shows as its number.
    """
    chapters = (
        ("", _figures(summary)),
        ("Load", _load(summary)),
        ("What the experts take", _labels(trace)),
        ("Does the token decide?", _identity(summary) + _tokens(trace, token_texts)),
        ("Is routing fixed early?", _comparisons(summary)),
        ("Dropped choices", _drops(summary)),
        ("Do consecutive tokens share experts?", _locality(summary)),
        ("How well does a small cache work?", _caches(summary)),
        ("Chunks of tokens", _sparsity(summary)),
        ("How sure are the routers?", _scores(summary)),
        ("What layers know of one another", _between(summary)),
    )
    name = summary.name or "routing"
    return page(f"{name}: routing analysis", f"{name}: routing", chapters)


def _share(value: float) -> str:
    return f"{value:.1%}" if math.isfinite(value) else "-"


def _note(words: str) -> str:
    return f'<p class="note">{words}</p>'


def _layer_names(summary: Summary) -> list[str]:
    return [f"Layer {layer.layer}" for layer in summary.layers]


def _figures(summary: Summary) -> str:
    layers = summary.layers
    experts = sorted({layer.num_experts for layer in layers})
    figures = [
        ("tokens", f"{summary.tokens:,}"),
        ("texts", f"{summary.texts:,}"),
        ("layers with a router", str(len(layers))),
        ("experts per layer", " or ".join(map(str, experts))),
        ("experts per token, mean", plain(float(np.mean([layer.slots_per_token for layer in layers])))),
        ("of the choices dropped", f"{_share(np.mean([layer.dropped for layer in layers]))}"),
    ]
    return tiles(figures + ([("training step", f"{summary.step:,}")] if summary.step is not None else []))


def _load(summary: Summary) -> str:
    maps = ""
    for E in sorted({layer.num_experts for layer in summary.layers}):
        own = [layer for layer in summary.layers if layer.num_experts == E]
        share_LE = np.array([layer.load for layer in own])
        maps += heat_map.matrix(
            f"Share of the slots, {E} experts (%)", [f"layer {layer.layer}" for layer in own], share_LE
        )
    rows = [
        (name, f"{layer.max_violation:+.1%}", f"{math.exp(layer.load_entropy):.2f} of {layer.num_experts}")
        for name, layer in zip(_layer_names(summary), summary.layers, strict=True)
    ]
    head = ("", "largest load above even", "experts in use")
    return _note(notes.LOAD) + heat_map.legend() + f'<div class="wide">{maps}</div>' + table(head, rows)


def _labels(trace: RoutingTrace) -> str:
    if trace.label_N is None:
        return none("The tokens of this trace have no labels.")
    shares = zip(trace.layers(), trace.share_by_label(), strict=True)
    maps = "".join(heat_map.matrix(f"Layer {layer.index}", trace.labels, share) for layer, share in shares)
    return _note(notes.LABELS) + f'<div class="wide">{maps}</div>'


def _identity(summary: Summary) -> str:
    rows = []
    for name, layer in zip(_layer_names(summary), summary.layers, strict=True):
        own = layer.identity
        tables = (own.token, own.previous, own.position, own.shuffled)
        known = f"{_share(own.token.accuracy)} ({_share(own.token.baseline)})"
        knows = [plain(found.uncertainty_coefficient) for found in tables]
        spreads = (own.spread_token, own.spread_position, own.spread_shuffled, own.spread_most)
        rows.append((name, known, *knows, *map(plain, spreads)))
    head = ("", "id predicts (without)", "id", "previous id", "position", "shuffled ids")
    head += ("spread by id", "by position", "by shuffled ids", "at most")
    return _note(notes.IDENTITY) + table(head, rows)


def _tokens(trace: RoutingTrace, token_texts: dict[int, str]) -> str:
    ids, counts = np.unique(trace.token_N, return_counts=True)
    shown = ids[np.argsort(-counts, kind="stable")][:MOST_TOKENS_SHOWN]
    index_N = np.full(trace.num_tokens, len(shown))
    for i, token in enumerate(shown):
        index_N[trace.token_N == token] = i
    names = [repr(token_texts.get(int(token), int(token)))[:14] for token in shown]
    layers = list(trace.layers())
    maps = ""
    for layer in dict.fromkeys((0, len(layers) - 1)):
        maps += _token_map(layers[layer], index_N, names)
    return _note(notes.TOKENS) + heat_map.legend() + f'<div class="wide">{maps}</div>'


def _token_map(layer: Layer, index_N: np.ndarray, names: list[str]) -> str:
    slots_VE = layer.count_slots(index_N, len(names) + 1)[:-1].astype(float)
    total_V1 = slots_VE.sum(axis=1, keepdims=True)
    share_VE = np.divide(slots_VE, total_V1, out=np.full_like(slots_VE, np.nan), where=total_V1 > 0)
    return heat_map.matrix(f"Layer {layer.index}", names, share_VE)


def _comparisons(summary: Summary) -> str:
    if not summary.comparisons:
        return none(
            "There is one checkpoint only. A run keeps more with --config.train.checkpoint.keep_every=N."
        )
    pairs = list(enumerate(summary.comparisons))
    steps = [i if other.step is None else other.step for i, other in pairs]
    order = np.argsort(steps, kind="stable")
    agreement_S = np.array([np.mean(summary.comparisons[i].agreement) for i in order])
    lines = [Line("agreement", np.array(steps)[order], agreement_S, dots=True)]
    rows = []
    for i in order:
        other = summary.comparisons[i]
        for at, name in enumerate(_layer_names(summary)):
            cells = (
                f"{_share(value)}"
                for value in (vars(other.change[at]).values() if other.change else [math.nan] * 3)
            )
            rows.append((f"step {steps[i]}", name, f"{_share(other.agreement[at])}", *cells))
    head = ("compared with", "", "same expert per id", "set changed", "first choice changed", "overlap lost")
    drawn = chart("Same expert per token id (share)", lines)
    return _note(notes.COMPARISONS) + f'<div class="wide">{drawn}{table(head, rows)}</div>'


def _drops(summary: Summary) -> str:
    dropped = [layer.dropped for layer in summary.layers]
    if not any(dropped):
        return none("No choice was dropped: every expert took all that chose it.")
    drop_LKP = np.array(summary.drops_by_place, float)
    lines = []
    for k in range(min(drop_LKP.shape[1], len(TONES))):
        found_P = np.isfinite(drop_LKP[:, k]).any(axis=0)
        mean_P = np.nanmean(drop_LKP[:, k][:, found_P], axis=0)
        lines.append(Line(f"choice {k + 1}", np.flatnonzero(found_P) + 1, mean_P, tone=TONES[k], dots=True))
    drawn = chart("Dropped (share)", lines, x_name="part of the row")
    return _note(notes.DROPS) + f'<div class="wide">{drawn}<div></div></div>'


def _locality(summary: Summary) -> str:
    def cells(found: Locality) -> tuple[str, ...]:
        figures = (found.srp.value, found.shuffled, found.iid, found.srp.size_ratio)
        return (str(found.window), *map(plain, figures))

    rows = [
        (name, *cells(found))
        for name, layer in zip(_layer_names(summary), summary.layers, strict=True)
        for found in layer.locality
    ]
    rows += [("all layers", *cells(found)) for found in summary.whole_locality]
    if not rows:
        return none("The texts are shorter than the shortest window.")
    head = ("", "window (tokens)", "SRP", "shuffled tokens", "independent", "size ratio")
    return _note(notes.LOCALITY) + table(head, rows)


def _caches(summary: Summary) -> str:
    sizes = np.array([cache.size for cache in summary.whole_caches])
    names = {"lru": "LRU", "lfu": "LFU", "sch": "SCH", "belady": "Belady"}
    lines = [
        Line(name, sizes, np.array([c.hits[policy] for c in summary.whole_caches]), tone=tone, dots=True)
        for tone, (policy, name) in zip(TONES, names.items(), strict=True)
    ]
    head = ("", "cache (experts)", *names.values(), "static", "any experts")
    rows = [
        (
            name,
            str(cache.size),
            *(f"{_share(cache.hits[p])}" for p in (*names, "static")),
            f"{_share(cache.iid)}",
        )
        for name, caches in (
            *zip(_layer_names(summary), [layer.caches for layer in summary.layers], strict=True),
            ("all layers", summary.whole_caches),
        )
        for cache in caches
    ]
    drawn = chart("Hit rate, one cache for all layers", lines, x_name="experts in the cache")
    return _note(notes.CACHES) + f'<div class="wide">{drawn}{table(head, rows)}</div>'


def _sparsity(summary: Summary) -> str:
    def cells(own) -> list[str]:
        chunks = [f"{_share(own.chunk[n])} ({_share(own.chunk_iid[n])})" for n in own.chunk]
        return [f"{_share(own.token)}", *chunks, f"{_share(own.reuse)} ({_share(own.reuse_iid)})"]

    pairs = zip(_layer_names(summary), summary.layers, strict=True)
    rows = [(name, *cells(layer.sparsity)) for name, layer in pairs]
    lengths = [f"CLS {n}" for n in summary.layers[0].sparsity.chunk]
    return _note(notes.SPARSITY) + table(("", "TLS", *lengths, "reuse"), rows)


def _scores(summary: Summary) -> str:
    rows = []
    for name, layer in zip(_layer_names(summary), summary.layers, strict=True):
        if layer.scores is None:
            return none("The trace has no scores.")
        own, E = layer.scores, layer.num_experts
        rows.append(
            (
                name,
                f"{own.entropy:.3f} ({math.log(E):.3f})",
                plain(own.inner_balance),
                f"{own.outer_balance:.3f} ({layer.slots_per_token / E:.3f})",
            )
        )
    return _note(notes.SCORES) + table(("", "entropy", "inner balance", "outer balance"), rows)


def _between(summary: Summary) -> str:
    names = _layer_names(summary)
    if len(names) < 2:
        return none("There is one layer with a router.")
    sections = [
        ("First choices over tokens (nats)", summary.choice_information),
        ("The same, shuffled tokens", summary.choice_information_shuffled),
    ]
    if summary.score_information is not None:
        sections.append((f"Scores of one token in {balance.BINS} bins (nats)", summary.score_information))
    drawn = "".join(
        f"<figure><figcaption>{escape(title)}</figcaption>"
        + table(("", *names), [(name, *map(plain, row)) for name, row in zip(names, values, strict=True)])
        + "</figure>"
        for title, values in sections
    )
    return _note(notes.BETWEEN) + f'<div class="wide">{drawn}</div>'
