"""What the model wrote, as its tokens come: text, where it ends, and how likely its tokens were."""

import dataclasses
from collections.abc import Sequence

from moejax.ops.sampling import Likelihoods
from moejax.serving.request import Request
from moejax.tokenizer import Tokenizer

MARGIN = 16  # tokens without text, such as control tokens, that may lie within a stop text


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """Of one written token, by the model itself: before temperature and whatever narrows the choice."""

    log_prob: float  # nats
    top: tuple[tuple[int, float], ...] = ()  # (id, nats) of the most likely tokens in its place

    @classmethod
    def read(cls, likelihoods: Likelihoods, at: tuple[int, ...], most: int) -> "Likelihood":
        """From arrays of the host: that at one place, with the `most` likely tokens."""
        top = zip(likelihoods.top_token_BK[at][:most], likelihoods.top_log_prob_BK[at][:most], strict=True)
        return cls(float(likelihoods.log_prob_B[at]), tuple((int(id), float(nats)) for id, nats in top))


@dataclasses.dataclass(frozen=True)
class Timing:
    """When tokens came, in seconds since they were asked for; depends on what else was to be done."""

    first: float
    last: float
    cached_tokens: int | None = None  # of the prompt, found in the cache; None = not known

    def per_token(self, count: int) -> float | None:
        """Seconds per token after the first of `count`."""
        return (self.last - self.first) / (count - 1) if count > 1 else None


@dataclasses.dataclass(frozen=True)
class Completion:
    """What the model wrote after one prompt."""

    text: str  # "" if the model has no tokenizer
    tokens: tuple[int, ...]  # without the end token; with those of the stop text, which is not in `text`
    finish_reason: str  # stop: the model ended the text, or a stop text came | length: no more was allowed
    prompt_tokens: int  # the begin token included
    logprobs: tuple[Likelihood, ...] | None = None  # of each token; None if nobody asked
    timing: Timing | None = dataclasses.field(default=None, compare=False)


class Writer:
    """The completion of one request while it is written. Host code without clock.

    Args:
      tokenizer: None: no text.
      request: what is answered.
    """

    def __init__(self, tokenizer: Tokenizer | None, request: Request):
        self._tokenizer, self._request = tokenizer, request
        self._tokens: list[int] = []
        self._likelihoods: list[Likelihood] = []
        self._times: list[float] = []
        self._cached_tokens: int | None = None  # as of `Timing`

    @property
    def logprobs(self) -> int | None:
        """As of `Sampling`."""
        return self._request.sampling.logprobs

    def begins(self, cached_tokens: int) -> None:
        """So much of the prompt is in the cache; only the first call counts, as a request may wait again."""
        if self._cached_tokens is None:
            self._cached_tokens = cached_tokens

    def add(self, tokens: Sequence[int], now: float, likelihoods: Sequence[Likelihood] = ()) -> bool:
        """Take more tokens.

        Args:
          tokens: without the end token.
          now: seconds since the request was made.
          likelihoods: of `tokens`, if the request wants them.

        Returns:
          Whether a stop text came, so that no more tokens are needed.
        """
        self._tokens += tokens
        self._likelihoods += likelihoods
        self._times += [now] * len(tokens)
        stops = self._request.sampling.stop
        if not stops or not tokens:
            return False
        # a character of a stop text is at most four tokens, one per byte
        start = max(0, len(self._tokens) - len(tokens) - 4 * max(map(len, stops)) - MARGIN)
        tail = self._decode(start, len(self._tokens))
        return any(stop in tail for stop in stops)

    def completion(self, ended: bool) -> Completion:
        """What was written, cut before the first stop text.

        Args:
          ended: whether an end token came.
        """
        count, text = self._until_stop() or (len(self._tokens), None)
        return Completion(
            self._decode(0, count) if text is None else text,
            tuple(self._tokens[:count]),
            "stop" if ended or text is not None else "length",
            len(self._request.tokens),
            tuple(self._likelihoods[:count]) if self.logprobs is not None else None,
            Timing(self._times[0], self._times[count - 1], self._cached_tokens) if count else None,
        )

    def _until_stop(self) -> tuple[int, str] | None:
        """(tokens up to the one that completes a stop text, text before it) if one came."""
        stops, most = self._request.sampling.stop, len(self._tokens)
        if not stops or not _has(self._decode(0, most), stops):
            return None
        least = 0
        while least < most:  # once a stop text is there, it stays
            middle = (least + most) // 2
            if _has(self._decode(0, middle), stops):
                most = middle
            else:
                least = middle + 1
        text = self._decode(0, most)
        return most, text[: min(text.index(stop) for stop in stops if stop in text)]

    def _decode(self, start: int, stop: int) -> str:
        if self._tokenizer is None:
            return ""
        before = self._tokens[start - 1 : start] if start else self._request.tokens
        return self._tokenizer.decode_after(before, self._tokens[start:stop])


def _has(text: str, stops: Sequence[str]) -> bool:
    return any(stop in text for stop in stops)
