"""How the final loss follows from the average number of parameters in training and from tokens.

"The Journey Matters: Average Parameter Count over Pre-training Unifies Sparse and Dense Scaling Laws" (Jin et
al., 2025, arXiv 2501.12486): L = E + A / N^alpha + B / D^beta, where N is the mean over training of how many
parameters there were, so that one law holds for models that are pruned in training and for dense ones. The
fit is that of Hoffmann et al. (2022, arXiv 2203.15556): Huber's loss of the error in log L, from several
starts. For given alpha and beta the terms are a problem of least squares; those that do best in it are the
starts.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from scipy import optimize

from moejax.config import require

DELTA = 1e-3  # error in log L up to which Huber's loss is quadratic
SLOPES = np.linspace(0.05, 1.5, 30)  # alpha and beta to start from
STEEPEST = 3.0  # alpha and beta that are allowed
NUM_STARTS = 8
LEAST_SHARE = 1e-4  # of the loss in a term, at a start


@dataclasses.dataclass(frozen=True)
class Point:
    """One finished run."""

    params: float  # N: average over training, of a dense run its parameters
    tokens: float  # D
    loss: float  # nats per token


@dataclasses.dataclass(frozen=True)
class Law:
    """L = E + A / N^alpha + B / D^beta."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, params, tokens):
        """Of a run with so many parameters on average and so many tokens, in nats."""
        return self.E + self.A / params**self.alpha + self.B / tokens**self.beta


def avg_params(trace: Sequence[tuple[int, float]], steps: int) -> float:
    """Mean over a run of so many steps of (step, parameters from this step on); the first step is 0."""
    at, params = np.array(trace, float).T
    require(
        at[0] == 0 and at[-1] <= steps and (np.diff(at) >= 0).all(),
        f"the trace goes from step {at[0]:.0f} to {at[-1]:.0f} of {steps}; it must begin at 0, rise, and end "
        "within the run",
    )
    return float(params @ np.diff(at, append=steps) / steps)


def fit(points: Sequence[Point]) -> Law:
    """The law that is nearest to the points; at least five of them, of several N and several D."""
    require(len(points) >= 5, f"{len(points)} points do not determine 5 numbers; give at least 5")
    params, tokens, loss = np.log([dataclasses.astuple(point) for point in points]).T
    for name, x in (("params", params), ("tokens", tokens)):
        require(np.ptp(x) > 0, f"all points have the same {name}, so their term is unknown; vary them")
    x = np.stack([np.zeros_like(loss), params - params.mean(), tokens - tokens.mean()])

    def parts(theta):
        """(error in log L, its derivative) at theta = (logs of the terms in the middle, alpha, beta)."""
        term = theta[:3, None] - np.array([0.0, *theta[3:]])[:, None] * x
        log_sum = np.logaddexp.reduce(term)
        share = np.exp(term - log_sum)
        return log_sum - loss, np.concatenate([share, -share[1:] * x[1:]]).T

    bounds = ([-np.inf] * 3 + [0.0] * 2, [np.inf] * 3 + [STEEPEST] * 2)
    settings = {"bounds": bounds, "loss": "huber", "f_scale": DELTA, "xtol": 1e-12, "ftol": 1e-12}
    found = [
        optimize.least_squares(lambda t: parts(t)[0], start, lambda t: parts(t)[1], **settings)
        for start in _starts(x, loss)
    ]
    *logs, alpha, beta = min(found, key=lambda one: one.cost).x
    E, A, B = np.exp(logs + np.array([0.0, alpha * params.mean(), beta * tokens.mean()]))
    return Law(float(E), float(A), float(B), float(alpha), float(beta))


def _starts(x, loss):
    """The best theta by least squares of relative errors in L, over a grid of slopes."""
    found = []
    for alpha, beta in itertools.product(SLOPES, SLOPES):
        share = np.exp(-np.array([0.0, alpha, beta])[:, None] * x - loss)
        terms, error = optimize.nnls(share.T, np.ones_like(loss))
        found.append((error, [*np.log(np.maximum(terms, LEAST_SHARE * np.exp(loss.mean()))), alpha, beta]))
    return [theta for _, theta in sorted(found)[:NUM_STARTS]]
