"""Which implementations of transformers can be measured here, and why the others cannot."""

import functools
import importlib.util
import os
from collections.abc import Callable

from moejax.analysis import machine
from moejax.config import Run
from moejax.errors import UsageError
from moejax.interop.hf import directory, mixtral

AGREEMENT = 1e-4  # relative difference of the first next-token loss beyond which nothing is compared
MISSING = "transformers was not measured: pip install 'moejax[peers]' brings it"


class Peers:
    """Contestants that start from our weights and compute our next-token loss."""

    def __init__(self):
        self.steps: dict[str, Callable[[], None]] = {}  # by name; one step of each
        self.notes: list[str] = []  # why something is not among them
        self.settings: dict = {}  # for the report


def find(run: Run, params, batches: list[dict], loss: float) -> Peers:
    """Everything that transformers offers, if it is installed.

    Args:
      run: whose model is compared, if it is a Mixtral.
      params: where all start.
      batches: numpy columns, taken in turn.
      loss: ours, of the first batch in nats per target.
    """
    peers = Peers()
    if any(importlib.util.find_spec(name) is None for name in ("torch", "transformers")):
        peers.notes.append(MISSING)
        return peers
    from moejax.bench.mixtral_peer import VERSIONS, Peer, implementations

    try:
        tensors = directory.tensors(mixtral.FAMILY, run.model, params)
        weights = {name: make() for name, _, make in tensors}
        config = directory.config_json(mixtral.FAMILY, run.model, run.train.seq_len, {})
    except UsageError as error:
        peers.notes.append(f"transformers was not measured: {error}")
        return peers
    peer = Peer(run, config, weights, batches, os.cpu_count())
    updates = ", ".join(f"{kind} {seconds:.3f} s" for kind, seconds in peer.update_seconds.items())
    peers.settings = {"peer versions": VERSIONS, "peer update": f"{peer.update} of {updates}"}
    steps, reasons = {}, {}
    for experts, attention, reason in implementations(run, machine.describe().memory):
        name = f"transformers {experts}, {attention} attention"
        steps[name] = functools.partial(_step, peer, experts, attention)
        compare = functools.partial(_disagreement, peer, experts, attention, loss)
        reasons[name] = reason or _failure(compare)
    # Only now, because a step moves the weights that all of them share.
    for name, step in steps.items():
        reasons[name] = reasons[name] or _failure(step)
    peers.steps = {name: step for name, step in steps.items() if not reasons[name]}
    peers.notes += [f"{name} was not measured: {reason}" for name, reason in reasons.items() if reason]
    return peers


def _failure(run: Callable[[], str | None]) -> str | None:
    """What `run` finds wrong, or how it fails."""
    try:
        return run()
    except Exception as error:  # whatever other people's code raises is their result
        return f"{type(error).__name__}: {error}"


def _disagreement(peer, experts: str, attention: str, loss: float) -> str | None:
    peer.use(experts, attention)
    theirs = peer.next_token_loss()
    if abs(theirs - loss) <= AGREEMENT * abs(loss):
        return None
    return f"its next-token loss of the first batch is {theirs:.6f}, that of moejax {loss:.6f}"


def _step(peer, experts: str, attention: str) -> None:
    peer.use(experts, attention)
    peer.step()
