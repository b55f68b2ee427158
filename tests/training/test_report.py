"""The report draws what a run wrote, escapes what it must, loads nothing, and bears any missing file."""

import base64
import hashlib
import json
import re

import numpy as np
import pytest

from moejax.training import report
from moejax.training.metrics import MetricsWriter
from moejax.training.report import run_files
from tests.analysis.routing import traces
from tests.report.outline import Outline

EVIL = (
    "</pre></title><script>alert('owned')</script><img src=//evil.example/x onerror='alert(1)'>&amp;\" ' \x00"
)
FILES = ("metrics.jsonl", "config.json", "data.json", "baselines.json", "samples.jsonl", "routing.npz")


def make_run(run_dir, text="def f(x):"):
    """A small but complete run directory, with `text` wherever a run keeps words."""
    L, E = 2, 4
    with MetricsWriter(run_dir, tensorboard=False) as writer:
        for step in range(1, 51):
            loss = 2 + 4 / step
            extra = {"eval/loss": loss, "eval/bits_per_byte": loss / 2} if step % 10 == 0 else {}
            router = {"router/load_LE": np.full((L, E), 0.25), "router/load_max": 1.0}
            writer.write(step, {"train/loss": loss, "train/grad_norm": 1 / step, **router, **extra})
    train = {"steps": 50, "batch_rows": 4, "seq_len": 100, "note": text}
    config = {"config": {"name": text, "train": train}, "sources": {"train.steps": text}}
    (run_dir / "config.json").write_text(json.dumps(config))
    errors = {"counts": {text: 3}, "first": [text]}
    data = {"source": text, "errors": errors, "files": [{"path": text, "sha256": "ab" * 32}]}
    (run_dir / "data.json").write_text(json.dumps(data))
    (run_dir / "baselines.json").write_text(json.dumps({"bits_per_byte": {"gzip -9": 2.08, "xz -9": 0.8}}))
    (run_dir / "samples.jsonl").write_text(
        json.dumps({"step": 50, "prompt": text, "text": text + " ok"}) + "\n"
    )
    even = [0, 1, 2, 3, *range(4), 0, 1]
    expert_LNK = np.array([[*even, *even], [*even, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3]])[..., None]
    traces.trace(expert_LNK, E).labelled([0] * 10 + [1] * 10, (text, "number")).save(run_dir / "routing.npz")
    return run_dir


def page(run_dir):
    return report.write(run_dir).read_text()


def test_the_verdict_and_the_figures_by_hand(tmp_path):
    text = page(make_run(tmp_path))
    # the last loss is 2 + 4 / 50 = 2.08 nats, 1.04 bits per byte: half of gzip's 2.08, 1.3 times xz's 0.8
    assert (
        "<b>1.040 bits per byte</b>: 50.0% less than gzip -9 (2.080) and 30.0% more than xz -9 (0.800)."
        in text
    )
    assert "<b>50</b><span>steps of 50</span>" in text
    assert "<b>20,000</b><span>tokens trained on</span>" in text
    assert "<b>0</b><span>of 8 experts without tokens at the end</span>" in text
    assert "layer 1, expert 0 takes 70% of the tokens of kind number (an even share is 25.0%)" in text
    assert "3 records were left out" in text
    assert " ok</pre>" in text


def test_an_unfinished_run_says_so(tmp_path):
    make_run(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["config"]["train"]["steps"] = 1500
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "The run has reached step 50 of 1,500." in page(tmp_path)


def test_hostile_text_stays_text(tmp_path):
    tame, evil = Outline(page(make_run(tmp_path / "tame"))), Outline(page(make_run(tmp_path / "evil", EVIL)))
    assert evil.tags == tame.tags
    assert [name for name, _ in evil.attributes] == [name for name, _ in tame.attributes]
    assert (
        "".join(evil.words).count("alert('owned')") >= 8
    )  # title, head, setting, source, data, file, sample...


def test_the_page_loads_nothing(tmp_path):
    text = page(make_run(tmp_path))
    outline = Outline(text)
    links = [value for name, value in outline.attributes if name in ("src", "href", "xlink:href", "action")]
    assert links
    assert all(value.startswith("data:image/png;base64,") for value in links)
    assert not re.search(r"@import|url\(|http://|https://", text)
    assert not [name for name, _ in outline.attributes if name.startswith("on")]
    assert "default-src 'none'" in text


def test_the_policy_allows_exactly_the_script_of_the_page(tmp_path):
    text = page(make_run(tmp_path))
    script = re.search(r"<script>(.*?)</script>", text, re.S).group(1)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text


def test_an_empty_directory_gives_a_page_in_words(tmp_path):
    text = page(tmp_path)
    Outline(text)
    for words in (
        "Nothing has been recorded yet",
        "a dense model has none",
        "no text was sampled",
        "no config.json",
    ):
        assert words in text


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "damage", [None, b"", b"\x00\xff{", b"[1, 2]", b'{"files": 3, "errors": "x", "config": []}']
)
def test_any_file_may_be_missing_or_broken(tmp_path, name, damage):
    make_run(tmp_path)
    (tmp_path / name).unlink()
    if damage is not None:
        (tmp_path / name).write_bytes(damage)
    Outline(page(tmp_path))


def test_odd_values_are_borne(tmp_path):
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write(
            0, {"train/loss": np.nan, "train/grad_norm": 0.0, "router/load_LE": np.full((1, 2), np.nan)}
        )
        writer.write(
            1, {"train/loss": np.inf, "train/grad_norm": 1.0, "router/load_LE": np.full((2, 2), 0.5)}
        )
        writer.write(1, {"eval/loss": np.ones(3), "time/step_s": 0.0, "time/data_s": 0.1})
    text = page(tmp_path)
    Outline(text)
    assert "2 of 3 reports had a loss or an update that was not finite" in text


def test_loads_that_are_not_finite_are_left_out(tmp_path):
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        for step, share in ((1, 0.5), (2, np.nan), (3, 0.5)):
            writer.write(step, {"router/load_LE": np.full((1, 2), share)})
    cells = dict(Outline(page(tmp_path)).attributes)["data-strip"]
    assert json.loads(cells, parse_constant=pytest.fail) == {"step": ["1", "3"], "percent": [[50, 50]] * 2}


def test_the_same_run_gives_the_same_page(tmp_path):
    assert page(make_run(tmp_path)) == page(tmp_path)


def test_any_loss_and_router_metric_gets_a_chart(tmp_path):
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write(1, {"train/loss": 3.0, "loss/next_token": 2.9, "loss/new": 1.0, "router/bias_max": 0.1})
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page(tmp_path))
    assert captions == ["Loss (nats per token)", "Held-out bits per byte", "loss/new", "router/bias_max"]


def test_settings_are_flattened():
    tree = {"a": {"b": [1, 2], "c": [{"d": 3}]}, "e": {}, "f": None}
    assert run_files.flatten(tree) == {"a.b": [1, 2], "a.c[0].d": 3, "e": {}, "f": None}


TOKENS = {
    "keyword": (" for", "None", "\nreturn"),
    "identifier": (" self", ".append", " __init__", "_", "\u00e9t\u00e9"),
    "number": ("42", " 0x1F", ".5"),
    "string": (' "', "'utf-8'"),
    "operator": ("):", " ==", "..."),
    "space": ("    ", "\t"),
    "newline": ("\n", "\n        "),
    "comment": ("#", " # the"),
    "other": ("", "\ufffd", "\u20ac", "\x00"),
}


@pytest.mark.parametrize("kind", report.KINDS)
def test_token_kinds(kind):
    assert [report.KINDS[index] for index in report.token_kinds(TOKENS[kind])] == [kind] * len(TOKENS[kind])
