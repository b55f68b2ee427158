"""Which implementations of transformers can be measured here, and why the others cannot."""

import functools
import importlib.util
import os
from collections.abc import Callable

from moejax.analysis import machine
from moejax.config import Run
from moejax.interop.hf import mixtral

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
      run: must be a Mixtral.
      params: where all start.
      batches: numpy columns, taken in turn.
      loss: ours, of the first batch in nats per target.
    """
    peers = Peers()
    if any(importlib.util.find_spec(name) is None for name in ("torch", "transformers")):
        peers.notes.append(MISSING)
        return peers
    from moejax.bench.mixtral_peer import VERSIONS, Peer, implementations

    peer = Peer(run, mixtral.to_hf(params, run.model), batches, os.cpu_count())
    updates = ", ".join(f"{kind} {seconds:.3f} s" for kind, seconds in peer.update_seconds.items())
    peers.settings = {"peer versions": VERSIONS, "peer update": f"{peer.update} of {updates}"}
    # All are checked before one of them takes a step, because a step moves the weights that they share.
    for experts, attention, reason in implementations(run, machine.describe().memory):
        name = f"transformers {experts}, {attention} attention"
        reason = reason or _disagreement(peer, experts, attention, loss)
        if reason:
            peers.notes.append(f"{name} was not measured: {reason}")
        else:
            peers.steps[name] = functools.partial(_step, peer, experts, attention)
    return peers


def _disagreement(peer, experts: str, attention: str, loss: float) -> str | None:
    """Why an implementation cannot be compared, or None."""
    try:
        peer.use(experts, attention)
        theirs = peer.next_token_loss()
    except Exception as error:  # whatever other people's code raises is their result
        return f"{type(error).__name__}: {error}"
    if abs(theirs - loss) > AGREEMENT * abs(loss):
        return f"its next-token loss of the first batch is {theirs:.6f}, that of moejax {loss:.6f}"
    return None


def _step(peer, experts: str, attention: str) -> None:
    peer.use(experts, attention)
    peer.step()
