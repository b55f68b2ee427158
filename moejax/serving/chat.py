"""Conversations: the model's chat template makes a prompt of the messages, the model writes the answer."""

import json
from collections.abc import Mapping, Sequence
from reprlib import repr as short
from typing import Any, Unpack

from moejax.config import require
from moejax.errors import UsageError
from moejax.serving.completion import Completion
from moejax.serving.generate import generate
from moejax.serving.request import (
    Request,
    RequestError,
    Sampling,
    SamplingOptions,
    is_per_prompt,
    make_request,
    refuse_unless,
)

Messages = Sequence[Mapping[str, Any]]


def chat(
    model,
    messages: Messages,
    *,
    variables: Mapping[str, Any] | None = None,
    recorder=None,
    **sampling: Unpack[SamplingOptions],
) -> Completion:
    """The model's next message in a conversation.

    Args:
      model: a `moejax.Model` with a chat template.
      messages: {"role": "user", "content": "..."} and the like, oldest first. The name of a control token in
        a message is ordinary text.
      variables: what else the template may ask for, such as {"enable_thinking": False}.
      recorder: as of `moejax.generate`.
      **sampling: fields of `Sampling`.

    Raises:
      RequestError: the model has no chat template, the template refuses the messages, or they are too long.

    >>> import moejax
    >>> model = moejax.load("smollm2")  # doctest: +SKIP
    >>> question = [{"role": "user", "content": "What is the capital of France?"}]
    >>> moejax.chat(model, question).text  # doctest: +SKIP
    'The capital of France is Paris.'
    """
    many = [name for name, value in sampling.items() if is_per_prompt(name, value)]
    require(not many, f"{', '.join(many)} is a list, but there is one conversation; give one value")
    prompt = prompt_of(model, messages, variables)
    return generate(model, [prompt], batch_rows=1, recorder=recorder, **sampling)[0]


def make_chat_request(model, messages: Messages, sampling: Sampling) -> Request:
    """The request for the model's next message; as `make_request`.

    Raises:
      RequestError: as of `chat`.
    """
    return make_request(model, prompt_of(model, messages), sampling)


def prompt_of(model, messages: Messages, variables: Mapping[str, Any] | None = None) -> list[int]:
    """Token ids by which the model reads a conversation, up to where its answer begins.

    Raises:
      RequestError: as of `chat`.
    """
    tokenizer = model.tokenizer
    can = tokenizer is not None and tokenizer.chat_template is not None
    refuse_unless(can, "the model has no chat template; give it a prompt in place of messages", "messages")
    refuse_unless(
        len(_text_of(messages)) <= tokenizer.longest * model.context,
        f"the messages have more characters than the model's context of {model.context} tokens can hold; "
        "shorten them",
        "messages",
        "context_length_exceeded",
    )
    try:
        return tokenizer.encode_chat(messages, **(variables or {}))
    except UsageError as error:
        raise RequestError(str(error), "messages") from None


def _text_of(messages: Messages) -> str:
    """The messages as JSON, after a look at their form."""
    is_list = isinstance(messages, list | tuple)
    kind = type(messages).__name__
    refuse_unless(is_list, f"messages is {kind}, not a list of objects", "messages", "invalid_type")
    refuse_unless(len(messages) > 0, "messages is empty; give at least one message", "messages")
    for i, message in enumerate(messages):
        right = isinstance(message, Mapping) and isinstance(message.get("role"), str)
        words = f'messages[{i}]={short(message)} is not {{"role": "...", "content": "..."}}'
        refuse_unless(right, words, "messages", "invalid_type")
    try:
        text = json.dumps(messages, ensure_ascii=False)
        text.encode()
    except UnicodeEncodeError:
        raise RequestError("the messages have half a surrogate pair", "messages") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(f"the messages are not made of JSON values: {error}", "messages") from None
    return text
