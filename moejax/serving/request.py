"""What one caller wants: a prompt and how to sample; what is wrong with it is that caller's error alone."""

import dataclasses
from collections.abc import Sequence
from reprlib import repr as short
from typing import Any, TypedDict

from moejax.errors import UsageError

MAX_TEMPERATURE = 2.0
MAX_SEED = 2**32 - 1


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
    """How to choose tokens."""

    max_tokens: int = 64  # of the completion, which also ends where the model's context is full
    temperature: float = 0.0  # 0 takes the most likely token
    top_k: int = 0  # choose among the k most likely tokens; 0 = all
    top_p: float = 1.0  # choose among the fewest tokens that together have this probability
    seed: int = 0  # the same request with the same seed gets the same text

    def __post_init__(self):
        for name, kind in self.__annotations__.items():
            value = getattr(self, name)
            kinds = (int,) if kind is int else (int, float)
            right = isinstance(value, kinds) and not isinstance(value, bool)
            wanted = "a whole number" if kind is int else "a number"
            refuse_unless(right, f"{name}={short(value)} must be {wanted}", name, "invalid_type")
        self._within("max_tokens", self.max_tokens >= 1, "at least 1")
        in_range = 0 <= self.temperature <= MAX_TEMPERATURE
        self._within("temperature", in_range, f"from 0 to {MAX_TEMPERATURE:g}")
        self._within("top_k", self.top_k >= 0, "at least 1, or 0 for all tokens")
        self._within("top_p", 0 < self.top_p <= 1, "above 0 and at most 1")
        self._within("seed", 0 <= self.seed <= MAX_SEED, f"from 0 to {MAX_SEED}")

    def _within(self, name: str, holds: bool, bounds: str) -> None:
        refuse_unless(holds, f"{name}={getattr(self, name)} must be {bounds}", name)


class SamplingOptions(TypedDict, total=False):
    """The fields of `Sampling` as keyword arguments, each for all prompts or one per prompt."""

    max_tokens: int | Sequence[int]
    temperature: float | Sequence[float]
    top_k: int | Sequence[int]
    top_p: float | Sequence[float]
    seed: int | Sequence[int]


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt that fits the model, begin token included."""

    tokens: tuple[int, ...]
    sampling: Sampling


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
    fitting = dataclasses.replace(sampling, max_tokens=min(sampling.max_tokens, room))
    return Request(tokens, fitting)


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
