"""The sections of the report, each a function of what the run wrote down."""

import html
from typing import Any

import numpy as np

from moejax.report import heat_map, numbers
from moejax.report.line_chart import Line, Mark, chart
from moejax.report.page import none, tiles
from moejax.training.health import Health, effective_experts
from moejax.training.report.run_files import RunFiles, flatten

MOST_FILES = 500
TITLES = {  # of the small charts, in this order; other losses and router metrics go by their names
    "train/learning_rate": "Learning rate",
    "train/grad_norm": "Gradient norm",
    "speed/tokens_per_s": "Tokens per second",
    "router/load_max": "Largest expert load (1 = even share)",
    "router/max_violation": "Largest load of any layer above even (0 = even)",
    "router/entropy": "Router entropy (nats)",
    "router/dropped": "Dropped tokens (share)",
}
STEADY = ("train/learning_rate", "router/dropped")  # drawn as they are; the rest under a running mean
escape = html.escape


def verdict(run: RunFiles) -> str:
    """What came of the run, in a sentence or two."""
    if not run.records:
        return none("Nothing has been recorded yet.")
    words, total = "", run.setting("train.steps")
    if isinstance(total, int) and run.last_step < total:
        words = f"The run has reached step {run.last_step:,} of {total:,}. "
    evaluations = run.scalars("eval/bits_per_byte")
    if not evaluations:
        return f'<p class="verdict">{words}No evaluation on held-out text has been recorded.</p>'
    bits = evaluations[-1]
    words += f"Held-out text costs the model <b>{bits:.3f} bits per byte</b>"
    if run.baselines:
        words += ": " + " and ".join(_compare(bits, name, mark) for name, mark in run.baselines.items())
    return f'<p class="verdict">{words}.</p>'


def _compare(bits: float, name: str, mark: float) -> str:
    change = bits / mark - 1
    relation = f"{abs(change):.1%} {'less' if change < 0 else 'more'} than"
    return f"{relation} {escape(name)} ({mark:.3f})"


def figures(run: RunFiles) -> str:
    """The numbers that people ask for first."""
    step, total = run.last_step, run.setting("train.steps")
    found = [("steps" + (f" of {total:,}" if isinstance(total, int) else ""), f"{step:,}")]
    rows, length = run.setting("train.batch_rows"), run.setting("train.seq_len")
    if isinstance(rows, int) and isinstance(length, int):
        found.append(("tokens trained on", numbers.plain(step * rows * length)))
    for name, label in (
        ("eval/bits_per_byte", "held-out bits per byte"),
        ("eval/loss", "held-out loss (nats per token)"),
        ("train/loss", "last training loss"),
    ):
        if values := run.scalars(name):
            found.append((label, f"{values[-1]:.3f}"))
    for name, label, unit in (
        ("speed/tokens_per_s", "tokens per second, median", 1),
        ("speed/flops_per_s", "GFLOP/s, median", 1e-9),
        ("time/step_s", "seconds per step, median", 1),
    ):
        if values := run.scalars(name):
            found.append((label, numbers.plain(float(np.median(values)) * unit)))
    _, load_SLE = run.loads()
    if load_SLE.size:
        dead = int((load_SLE[-1] * load_SLE.shape[2] < Health.dead_share).sum())
        found.append((f"of {load_SLE[-1].size} experts without tokens at the end", str(dead)))
    return tiles(found) + _nonfinite(run)


def _nonfinite(run: RunFiles) -> str:
    """A warning when losses or updates were not finite."""
    skipped = sum(value > 0 for value in run.scalars("health/skipped"))
    count = max(skipped, sum("train/loss" in record.get("nonfinite", {}) for record in run.records))
    if not count:
        return ""
    words = f"{count:,} of {len(run.records):,} reports had a loss or an update that was not finite."
    return f'<p class="warn">{words}</p>'


def losses(run: RunFiles) -> str:
    """Loss and bits per byte, then the rest of the training as small charts."""
    name = next((n for n in ("loss/next_token", "train/next_token") if run.scalars(n)), "train/loss")
    marks = tuple(Mark(label, bits) for label, bits in run.baselines.items())
    held_out = Line("held-out", *run.series("eval/loss"), tone="b", dots=True)
    main = [
        chart("Loss (nats per token)", [Line("training", *run.series(name), noisy=True), held_out]),
        chart(
            "Held-out bits per byte",
            [Line("model", *run.series("eval/bits_per_byte"), tone="b", dots=True)],
            marks,
        ),
    ]
    small = [
        chart(
            TITLES.get(metric, metric),
            [Line(metric, *run.series(metric), tone="c", noisy=metric not in STEADY)],
            log=metric == "train/grad_norm",
            small=True,
        )
        for metric in _small_charts(run, without=name)
    ]
    waits = _data_wait(run)
    small += [chart("Waiting for data (% of a step)", [waits], small=True)] if waits else []
    return f'<div class="wide">{"".join(main)}</div><div class="three">{"".join(small)}</div>'


def _small_charts(run: RunFiles, without: str) -> list[str]:
    """The scalar metrics that get a small chart."""
    names = {name for record in run.records for name in record if name.startswith(("loss/", "router/"))}
    more = sorted(name for name in names - TITLES.keys() - {without} if run.scalars(name))
    return [name for name in TITLES if run.scalars(name)] + more


def _data_wait(run: RunFiles) -> Line | None:
    both = [r for r in run.records if r.get("time/data_s") is not None and r.get("time/step_s")]
    if not both:
        return None
    share_S = np.array([100 * r["time/data_s"] / r["time/step_s"] for r in both])
    return Line("waiting", np.array([r["step"] for r in both]), share_S, tone="c", noisy=True)


def experts(run: RunFiles) -> str:
    """Load of each expert over time, one strip per layer."""
    step_S, load_SLE = run.loads()
    if not load_SLE.size:
        return none("No expert loads were recorded; a dense model has none.")
    E = load_SLE.shape[2]
    used_L = effective_experts(load_SLE[-1])
    strips = "".join(
        heat_map.strip(
            f"Layer {layer}: {used_L[layer]:.1f} of {E} experts in use at the end", step_S, load_LE
        )
        for layer, load_LE in enumerate(load_SLE.transpose(1, 0, 2))
    )
    return (
        f'<p class="note">Share of the tokens that each expert receives, over the steps. An even share is '
        f"{1 / E:.1%}. Experts in use: the number of equally loaded experts with the same entropy.</p>"
        f'{heat_map.legend()}<div class="wide">{strips}</div>'
    )


def kinds(run: RunFiles) -> str:
    """Which kinds of tokens each expert takes."""
    if run.routing is None or run.routing.label_N is None:
        return none("No routing by token kind was recorded.")
    names, shares = run.routing.labels, run.routing.share_by_label()
    titles = [f"Layer {layer.index}" for layer in run.routing.layers()]
    maps = "".join(heat_map.matrix(t, names, share_CE) for t, share_CE in zip(titles, shares, strict=True))
    return (
        '<p class="note">Of all held-out tokens of a kind (row), the percentage that goes to each expert '
        f"(column). {_specialist(shares, names, titles)}</p>"
        f'{heat_map.legend()}<div class="wide">{maps}</div>'
    )


def _specialist(shares: list[np.ndarray], names: tuple[str, ...], titles: list[str]) -> str:
    """The strongest preference in words, beside an even share."""
    times = [np.nanmax(share_CE, initial=0) * share_CE.shape[1] for share_CE in shares]
    layer = int(np.argmax(times))
    share_CE = shares[layer]
    if not times[layer]:
        return ""
    kind, expert = np.unravel_index(np.nanargmax(share_CE), share_CE.shape)
    return (
        f"The strongest preference: {escape(titles[layer].lower())}, expert {expert} takes "
        f"{share_CE[kind, expert]:.0%} of the tokens of kind {escape(names[kind])} "
        f"(an even share is {1 / share_CE.shape[1]:.1%})."
    )


def samples(run: RunFiles) -> str:
    """The latest samples, and earlier ones folded by step."""
    if not run.samples:
        return none(run.problems["samples.jsonl"])
    by_step: dict[Any, list[dict]] = {}
    for sample in run.samples:
        by_step.setdefault(sample.get("step"), []).append(sample)
    folds = [
        f"<details{' open' if i == 0 else ''}><summary>Step {escape(str(step))}</summary>"
        f"{''.join(map(_sample, group))}</details>"
        for i, (step, group) in enumerate(reversed(by_step.items()))
    ]
    return "".join(folds)


def _sample(sample: dict[str, Any]) -> str:
    prompt, text = str(sample.get("prompt", "")), str(sample.get("text", ""))
    text = text.removeprefix(prompt) if prompt else text
    return f'<pre><span class="prompt">{escape(prompt)}</span>{escape(text)}</pre>'


def settings(run: RunFiles) -> str:
    """Every setting, its value and where it was set."""
    if not run.config:
        return none(run.problems["config.json"])
    leaves = run.settings
    sources = run.config.get("sources")
    sources = sources if isinstance(sources, dict) else {}
    rows = "".join(
        f'<tr><td class="mono">{escape(name)}</td><td class="mono">{escape(_value(value))}</td>'
        f"<td>{escape(str(sources.get(_owner(name), '')))}</td></tr>"
        for name, value in leaves.items()
    )
    return (
        f"<details><summary>All {len(leaves)} settings</summary><div class='scroll'><table>"
        f"<tr><th>setting</th><th>value</th><th>set by</th></tr>{rows}</table></div></details>"
    )


def _owner(name: str) -> str:
    """The setting that `name` belongs to: the class of a strategy is the strategy's own value."""
    return name.removesuffix(".type")


def _value(value: Any) -> str:
    return value if isinstance(value, str) else str(value).replace("'", "")


def data(run: RunFiles) -> str:
    """What the run was trained on: counts, errors, and the files with their hashes."""
    if not run.data:
        return none(run.problems["data.json"])
    files = run.data.get("files")
    files = [file for file in files if isinstance(file, dict)] if isinstance(files, list) else []
    rest = {key: value for key, value in run.data.items() if key not in ("files", "errors")}
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(_value(value))}</td></tr>"
        for name, value in flatten(rest).items()
    )
    return f"{_errors(run.data.get('errors'))}<div class='scroll'><table>{rows}</table></div>{_files(files)}"


def _errors(errors: Any) -> str:
    """Records left out, by reason where the run counted reasons."""
    if errors is None:
        return ""
    counts = errors.get("counts", {}) if isinstance(errors, dict) else {"record": errors}
    total = sum(n for n in counts.values() if isinstance(n, int)) if isinstance(counts, dict) else 0
    if not total:
        return '<p class="note">Every record could be read.</p>'
    reasons = f" ({', '.join(f'{n} {k}' for k, n in counts.items())})" if isinstance(errors, dict) else ""
    first = errors.get("first", []) if isinstance(errors, dict) else []
    lines = "\n".join(map(str, first)) if isinstance(first, list) else ""
    fold = (
        f"<details><summary>The first of them</summary><pre>{escape(lines)}</pre></details>" if lines else ""
    )
    return f'<p class="warn">{total:,} records were left out{escape(reasons)}.</p>{fold}'


def _files(files: list[dict[str, Any]]) -> str:
    """The files in a folded table; columns are whatever the run noted about them."""
    if not files:
        return ""
    columns = list(dict.fromkeys(key for file in files[:MOST_FILES] for key in file))
    head = "".join(f"<th>{escape(str(column))}</th>" for column in columns)
    rows = "".join(
        "<tr>" + "".join(f'<td class="mono">{escape(str(file.get(c, "")))}</td>' for c in columns) + "</tr>"
        for file in files[:MOST_FILES]
    )
    more = (
        f" (the first {MOST_FILES:,} of {len(files):,}; the rest is in data.json)"
        if len(files) > MOST_FILES
        else ""
    )
    return (
        f"<details><summary>Files ({len(files):,}){more}</summary>"
        f"<div class='scroll'><table><tr>{head}</tr>{rows}</table></div></details>"
    )
