"""The benchmark of training speed on the smallest model: its figures mean nothing, their form does."""

import dataclasses
import importlib.util
import json
import math
import warnings

import numpy as np
import pytest

from moejax.bench import __main__ as door
from moejax.bench import peers, training


def check(report) -> dict:
    measures = {measure.name: measure for measure in report.measures}
    assert len(measures) == len(report.measures)
    for measure in report.measures:
        assert math.isfinite(measure.value) and measure.unit
        assert measure.n == 3 == len(measure.samples)
        assert measure.spread == (min(measure.samples), max(measure.samples))
    assert measures["moejax"].value > 0 and measures["floor"].value > 0
    json.dumps(report.to_dict())
    return measures


def test_without_peers():
    report = training.run(dataclasses.replace(training.tiny(), peers=False))
    measures = check(report)
    assert training.SPEEDUP not in measures
    share = measures[training.SHARE]
    assert share.value == pytest.approx(measures["moejax"].value / measures["floor"].value)
    assert report.holds is (None if share.value >= 0.85 else False)


def test_missing_peers_are_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    found = peers.find(None, None, [], 0.0)
    assert not found.steps and "pip install 'moejax[peers]'" in found.notes[0]


@pytest.fixture
def mixtral_peer():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other people's imports
        for name in ("torch", "transformers"):
            pytest.importorskip(name, reason=f"{name} comes with the extra: pip install moejax[peers]")
        from moejax.bench import mixtral_peer
    mixtral_peer.torch.set_num_threads(1)
    return mixtral_peer


def test_with_peers(mixtral_peer, monkeypatch):
    monkeypatch.setattr(mixtral_peer, "EXPERTS", ("eager", "grouped_mm"))
    monkeypatch.setattr(mixtral_peer, "ATTENTION", ("sdpa",))
    monkeypatch.setattr(peers.os, "cpu_count", lambda: 1)
    report = training.run(training.tiny())
    measures = check(report)
    assert not report.notes
    names = [f"transformers {experts}, sdpa attention" for experts in ("eager", "grouped_mm")]
    best = max(measures[name].value for name in names)
    assert measures[training.SPEEDUP].value == pytest.approx(measures["moejax"].value / best)


def test_a_peer_with_another_loss_is_not_compared(mixtral_peer, monkeypatch):
    monkeypatch.setattr(mixtral_peer, "EXPERTS", ("eager", "unheard_of"))
    monkeypatch.setattr(mixtral_peer, "ATTENTION", ("sdpa",))
    monkeypatch.setattr(peers.os, "cpu_count", lambda: 1)
    run = training.tiny().run
    program = training.training_program.build(run)
    params = program.init().params
    batches = training.step_parts.random_batches(program, 1)
    found = peers.find(run, params, batches, 1.0)
    assert not found.steps
    assert "next-token loss of the first batch is 5." in found.notes[0] and "moejax 1.0" in found.notes[0]
    assert "unheard_of" in found.notes[1]


def test_a_peer_that_fails_in_its_step_is_named(mixtral_peer, monkeypatch):
    def fail(self):
        raise NotImplementedError("no backward pass here")

    monkeypatch.setattr(mixtral_peer.Peer, "step", fail)
    monkeypatch.setattr(mixtral_peer.Peer, "next_token_loss", lambda self: 1.0)
    monkeypatch.setattr(peers.os, "cpu_count", lambda: 1)
    run = training.tiny().run
    program = training.training_program.build(run)
    found = peers.find(run, program.init().params, training.step_parts.random_batches(program, 1), 1.0)
    assert not found.steps and len(found.notes) == 6
    assert found.notes[0].endswith("was not measured: NotImplementedError: no backward pass here")


def test_gathered_weights_by_hand(mixtral_peer):
    # 4 rows x 16 tokens x 2 slots, 2 layers, 3 matrices of 64 x 64 floats of 4 bytes
    assert mixtral_peer.gathered_bytes(training.tiny().run) == 4 * 16 * 2 * 2 * 3 * 64 * 64 * 4
    reasons = [reason for *_, reason in mixtral_peer.implementations(training.tiny().run, 2**20)]
    assert [reason is None for reason in reasons] == [True] * 4 + [False] * 2


def test_random_batches_are_shifted_documents():
    program = training.training_program.build(training.tiny().run)
    first, second = training.step_parts.random_batches(program, 2)
    np.testing.assert_array_equal(first["token"][:, 1:], first["target"][:, :-1])
    assert first["token"].max() < program.run.model.vocab
    assert not np.array_equal(first["token"], second["token"])


def test_wrong_names_and_sizes_are_refused(capsys):
    assert door.main(["trainning"]) == 2
    assert "training" in capsys.readouterr().err
    assert door.main(["training", "--size=huge"]) == 2
    assert "--size=tiny" in capsys.readouterr().err
