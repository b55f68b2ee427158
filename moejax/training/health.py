"""Watches the metrics of a run and says in words what is going wrong.

A pure state machine: `Health.observe(state, step, metrics)` returns the next state and the warnings of this
report. Each trouble is named once when it begins and once when it ends, never at every report.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

LOAD = "router/load_LE"  # shares of the tokens per layer and expert; each row sums to 1
LOSS = "train/loss"
Metrics = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class HealthState:
    """What has been seen so far."""

    starved_LE: np.ndarray | None = None  # consecutive reports that each expert was below the dead share
    narrow_L: np.ndarray | None = None  # consecutive reports that each layer used too few experts
    losses: tuple[float, ...] = ()  # recent finite losses, spikes excluded
    trouble: str = ""  # of the loss: "", "spike" or "nonfinite"


@dataclasses.dataclass(frozen=True)
class Health:
    """When a report is worth a warning."""

    dead_share: float = 0.01  # of the uniform share 1/E, below which an expert starves
    narrow_share: float = 0.4  # of E, below which the effective number of experts is a collapse
    patience: int = 5  # consecutive reports before an expert is dead or a layer has collapsed
    window: int = 20  # reports that a loss is compared with
    spike_deviations: float = 8.0  # median absolute deviations above the median that make a spike
    spike_share: float = 0.1  # of the median, by which a spike exceeds it at least

    def observe(self, state: HealthState, step: int, metrics: Metrics) -> tuple[HealthState, list[str]]:
        """The state after one report, and its warnings in words; absent metrics change nothing."""
        words = []
        load = metrics.get(LOAD)
        if load is not None and np.isfinite(load).all():
            state, words = self._watch_load(state, np.asarray(load, float))
        if LOSS in metrics:
            state, more = self._watch_loss(state, step, float(metrics[LOSS]))
            words = words + more
        return state, words

    def num_dead(self, state: HealthState) -> int | None:
        """Experts that receive next to nothing, over all layers; None before any load was seen."""
        return None if state.starved_LE is None else int((state.starved_LE >= self.patience).sum())

    def _watch_load(self, state: HealthState, load_LE: np.ndarray) -> tuple[HealthState, list[str]]:
        L, E = load_LE.shape
        if state.starved_LE is None or state.starved_LE.shape != (L, E):
            state = dataclasses.replace(state, starved_LE=np.zeros((L, E), int), narrow_L=np.zeros(L, int))
        starved_LE = np.where(load_LE * E < self.dead_share, state.starved_LE + 1, 0)
        narrow_L = np.where(effective_experts(load_LE) < self.narrow_share * E, state.narrow_L + 1, 0)
        words = []
        for layer, load_E in enumerate(load_LE):
            words += self._dead_words(layer, load_E, state.starved_LE[layer], starved_LE[layer])
            words += self._narrow_words(layer, load_E, state.narrow_L[layer], narrow_L[layer])
        return dataclasses.replace(state, starved_LE=starved_LE, narrow_L=narrow_L), words

    def _dead_words(self, layer: int, load_E, before_E, after_E) -> list[str]:
        was_E, is_E = before_E >= self.patience, after_E >= self.patience
        died, revived = np.flatnonzero(is_E & ~was_E), np.flatnonzero(was_E & ~is_E)
        words = []
        if died.size:
            words.append(
                f"layer {layer} {_experts(died)} received {load_E[died].max():.1%} of the tokens for the "
                f"last {self.patience} reports (an even share is {1 / len(load_E):.1%}); "
                "a larger weight of the balance loss is the usual cure"
            )
        if revived.size:
            share = load_E[revived].min()
            words.append(f"layer {layer} {_experts(revived)} receives {share:.1%} of the tokens again")
        return words

    def _narrow_words(self, layer: int, load_E, before: int, after: int) -> list[str]:
        used = f"{effective_experts(load_E):.1f} of its {len(load_E)} experts"
        if before >= self.patience > after:
            return [f"layer {layer} uses {used} again (effective number)"]
        if after >= self.patience > before:
            return [
                f"layer {layer} used only {used} (effective number) for the last {self.patience} reports; "
                f"expert {load_E.argmax()} takes {load_E.max():.1%} of the tokens. The router is collapsing: "
                "a larger weight of the balance loss or a lower learning rate is the usual cure"
            ]
        return []

    def _watch_loss(self, state: HealthState, step: int, loss: float) -> tuple[HealthState, list[str]]:
        trouble, words = self._trouble(state, loss), []
        if trouble == "nonfinite" != state.trouble:
            words.append(f"the loss is {loss} at step {step}")
        elif trouble == "spike" != state.trouble:
            words.append(
                f"the loss jumped to {loss:.3f} at step {step}, from a median of "
                f"{np.median(state.losses):.3f}; if it stays, lower the learning rate or clip harder"
            )
        elif state.trouble and not trouble:
            words.append(f"the loss is back at {loss:.3f}")
        losses = state.losses if trouble else (*state.losses, loss)[-self.window :]
        return dataclasses.replace(state, losses=losses, trouble=trouble), words

    def _trouble(self, state: HealthState, loss: float) -> str:
        if not math.isfinite(loss):
            return "nonfinite"
        if len(state.losses) < self.window // 2:
            return ""
        median = float(np.median(state.losses))
        deviation = float(np.median(np.abs(np.array(state.losses) - median)))
        bound = median + max(self.spike_deviations * deviation, self.spike_share * abs(median))
        return "spike" if loss > bound else ""


def effective_experts(load_LE: np.ndarray) -> np.ndarray:
    """Experts in use per layer [L]: exp of the entropy of the loads; E when uniform, 1 when all go to one."""
    share_LE = load_LE / np.maximum(load_LE.sum(-1, keepdims=True), 1e-30)
    return np.exp(-np.sum(share_LE * np.log(np.maximum(share_LE, 1e-30)), -1))


def _experts(index: np.ndarray) -> str:
    plural = "s" if index.size > 1 else ""
    return f"expert{plural} {', '.join(map(str, index))}"
