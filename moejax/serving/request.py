"""What one caller wants: a prompt and how to sample; what is wrong with it is that caller's error alone."""

import dataclasses
import zlib
from collections.abc import Sequence
from reprlib import repr as short
from typing import Any, TypedDict

from moejax.errors import UsageError

MAX_TEMPERATURE = 2.0
MAX_STOPS = 4
MAX_LOGPROBS = 20
SEED_BITS = 64  # of a signed number


class RequestError(UsageError):
    """A request that cannot be answered; `param` and `code` say what is wrong with it in OpenAI's words."""

    def __init__(self, message: str, param: str | None = None, code: str = "invalid_value"):
        super().__init__(message)
        self.param, self.code = param, code


def refuse_unless(holds: bool, message: str, param: str | None = None, code: str = "invalid_value") -> None:
    """Raise a RequestError unless `holds`."""
    if not holds:
        raise RequestError(message, param, code)


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How to choose tokens, and when to end."""

    max_tokens: int = 64  # of the completion, which also ends where the model's context is full
    temperature: float = 0.0  # 0 takes the most likely token
    top_k: int = 0  # choose among the k most likely tokens; 0 = all
    top_p: float = 1.0  # choose among the fewest tokens that together have this probability
    seed: int = 0  # the same request with the same seed gets the same text
    min_p: float = 0.0  # choose among tokens with this share of the most likely one's probability
    stop: str | Sequence[str] = ()  # at most 4 texts that end the completion, which is cut before them
    logprobs: int | None = None  # 0 to 20: log-probabilities of the tokens, and of so many likeliest others

    def __post_init__(self):
        for name in ("max_tokens", "top_k", "seed"):
            self._check(name, (int,), "a whole number")
        for name in ("temperature", "top_p", "min_p"):
            self._check(name, (int, float), "a number")
        self._within("max_tokens", self.max_tokens >= 1, "at least 1")
        in_range = 0 <= self.temperature <= MAX_TEMPERATURE
        self._within("temperature", in_range, f"from 0 to {MAX_TEMPERATURE:g}")
        self._within("top_k", self.top_k >= 0, "at least 1, or 0 for all tokens")
        self._within("top_p", 0 <= self.top_p <= 1, "from 0 to 1")
        self._within("min_p", 0 <= self.min_p <= 1, "from 0 to 1")
        half = 2 ** (SEED_BITS - 1)
        self._within("seed", -half <= self.seed < half, f"from {-half} to {half - 1}")
        if self.logprobs is not None:
            self._check("logprobs", (int,), "a whole number")
            self._within("logprobs", 0 <= self.logprobs <= MAX_LOGPROBS, f"from 0 to {MAX_LOGPROBS}")
        object.__setattr__(self, "stop", _stops(self.stop))

    def _check(self, name: str, kinds: tuple[type, ...], wanted: str) -> None:
        value = getattr(self, name)
        right = isinstance(value, kinds) and not isinstance(value, bool)
        refuse_unless(right, f"{name}={short(value)} must be {wanted}", name, "invalid_type")

    def _within(self, name: str, holds: bool, bounds: str) -> None:
        refuse_unless(holds, f"{name}={short(getattr(self, name))} must be {bounds}", name)


def _stops(stop: Any) -> tuple[str, ...]:
    """One text or a list of them as a tuple."""
    stops = (stop,) if isinstance(stop, str) else stop
    right = isinstance(stops, list | tuple) and all(isinstance(text, str) for text in stops)
    refuse_unless(right, f"stop={short(stop)} must be a text or a list of texts", "stop", "invalid_type")
    refuse_unless(
        len(stops) <= MAX_STOPS, f"stop has {len(stops)} texts, at most {MAX_STOPS} are served", "stop"
    )
    refuse_unless("" not in stops, f"stop={short(stop)} has an empty text; leave it out", "stop")
    return tuple(stops)


class SamplingOptions(TypedDict, total=False):
    """The fields of `Sampling` as keyword arguments, each for all prompts or one per prompt.

    `stop` is for all prompts, unless it is a list of lists.
    """

    max_tokens: int | Sequence[int]
    temperature: float | Sequence[float]
    top_k: int | Sequence[int]
    top_p: float | Sequence[float]
    seed: int | Sequence[int]
    min_p: float | Sequence[float]
    stop: str | Sequence[str] | Sequence[Sequence[str]]
    logprobs: int | Sequence[int | None] | None


def is_per_prompt(name: str, value: Any) -> bool:
    """Whether an option has one value per prompt, rather than one for all."""
    many = isinstance(value, list | tuple)
    return many and (name != "stop" or any(isinstance(own, list | tuple) for own in value))


def per_prompt(name: str, value: Any, count: int) -> Sequence:
    """The option's value for each of `count` prompts."""
    known = [field.name for field in dataclasses.fields(Sampling)]
    refuse_unless(name in known, f"{name} is no setting of sampling; there are {', '.join(known)}", name)
    if not is_per_prompt(name, value):
        return [value] * count
    refuse_unless(len(value) == count, f"{name} has {len(value)} values for {count} prompts", name)
    return value


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt that fits the model, begin token included."""

    tokens: tuple[int, ...]
    sampling: Sampling  # with `max_tokens` that fit, and a seed of 32 bits


def make_request(model: Any, prompt: str | Sequence[int], sampling: Sampling) -> Request:
    """The request for `prompt`; its `max_tokens` is lowered to the room that the context leaves.

    Args:
      model: a `moejax.Model`.
      prompt: text, or token ids that are taken as they are.
      sampling: how to continue it.

    Raises:
      RequestError: the prompt is empty, too long, no text, or not made of the model's tokens.
    """
    tokens = _encode(model, prompt) if isinstance(prompt, str) else _checked(prompt, model.cfg.vocab)
    room = model.context - len(tokens)
    refuse_unless(
        room >= 1,
        f"the prompt has {len(tokens)} tokens, but the model's context is {model.context} tokens for prompt "
        f"and completion; shorten the prompt to at most {model.context - 1} tokens",
        "prompt",
        "context_length_exceeded",
    )
    refuse_unless(
        not sampling.stop or model.tokenizer is not None,
        "stop is text, but the model has no tokenizer; leave it out",
        "stop",
    )
    max_tokens, seed = min(sampling.max_tokens, room), _noise_seed(sampling.seed)
    return Request(tokens, dataclasses.replace(sampling, max_tokens=max_tokens, seed=seed))


def _noise_seed(seed: int) -> int:
    """A seed of 32 bits; one that is so already stays as it is."""
    return seed if 0 <= seed < 2**32 else zlib.crc32(seed.to_bytes(SEED_BITS // 8, "little", signed=True))


def _encode(model, text: str) -> tuple[int, ...]:
    refuse_unless(text != "", "the prompt is empty; give at least one character", "prompt")
    has_words = model.tokenizer is not None
    refuse_unless(has_words, "the prompt is text, but the model has no tokenizer; give token ids", "prompt")
    refuse_unless(
        len(text) <= model.tokenizer.longest * model.context,
        f"the prompt has {len(text)} characters, more than the model's context of {model.context} tokens can "
        "hold; shorten the prompt",
        "prompt",
        "context_length_exceeded",
    )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"half a surrogate pair at character {error.start}"
        raise RequestError(f"the prompt has {half}", "prompt") from None
    return tuple(model.tokenizer.encode_prompt(text))


def _checked(tokens: Sequence[int], vocab: int) -> tuple[int, ...]:
    is_list = isinstance(tokens, Sequence) and not isinstance(tokens, bytes)
    kind = type(tokens).__name__
    refuse_unless(is_list, f"the prompt is {kind}, not text or token ids", "prompt", "invalid_type")
    refuse_unless(len(tokens) > 0, "the prompt is empty; give at least one token", "prompt")
    for i, token in enumerate(tokens):
        right = isinstance(token, int) and not isinstance(token, bool) and 0 <= token < vocab
        refuse_unless(right, f"prompt[{i}]={short(token)} is not a token id from 0 to {vocab - 1}", "prompt")
    return tuple(tokens)
