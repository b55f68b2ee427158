"""What OpenAI's callers may send in the body of a request: each parameter is taken, ignored, or refused."""

from reprlib import repr as short
from typing import Any

from moejax.serving.request import MAX_LOGPROBS, refuse_unless

URLS = {"/v1/completions": "prompt", "/v1/chat/completions": "messages"}  # and where the text is
MAX_COMPLETION_LOGPROBS = 5  # of /v1/completions
# Only these values can be served.
FIXED: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "stream": (False,),
    "stream_options": (),
    "echo": (False,),
    "suffix": ("",),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "tools": ([],),
    "tool_choice": ("none",),
}
# They change no text.
IGNORED = ("model", "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")


def sampling_body(record: dict) -> tuple[dict, str]:
    """(parameters that this package has, which of them is the text) of a line of a batch file.

    What is null is as good as absent.

    Raises:
      RequestError: something in the line is not served.
    """
    for name, served in (("method", ("POST",)), ("url", tuple(URLS))):
        value = record.get(name)
        words = f"{name} is {short(value)}; only {' or '.join(served)} is served"
        refuse_unless(isinstance(value, str) and value in served, words, name)
    source, body = URLS[record["url"]], record.get("body")
    refuse_unless(isinstance(body, dict), "body is missing or no JSON object", "body", "invalid_type")
    body = {name: value for name, value in body.items() if value is not None and name not in IGNORED}
    for name, allowed in FIXED.items():
        if name in body:
            value = body.pop(name)
            words = f"{name}={short(value)} is not served; leave it out"
            refuse_unless(value in allowed, words, name, "unsupported_value")
    if source == "messages":
        _chat_names(body)
    else:
        _completion_names(body)
    return body, source


def _chat_names(body: dict) -> None:
    """The names of conversations become those of completions."""
    if "max_completion_tokens" in body:
        body["max_tokens"] = body.pop("max_completion_tokens")
    wanted, top = body.pop("logprobs", False), body.pop("top_logprobs", None)
    right = isinstance(wanted, bool)
    refuse_unless(right, f"logprobs={short(wanted)} must be true or false", "logprobs", "invalid_type")
    refuse_unless(wanted or top is None, "top_logprobs takes logprobs=true", "top_logprobs")
    if wanted:
        top = 0 if top is None else top
        right = isinstance(top, int) and not isinstance(top, bool) and 0 <= top <= MAX_LOGPROBS
        bounds = f"a whole number from 0 to {MAX_LOGPROBS}"
        refuse_unless(right, f"top_logprobs={short(top)} must be {bounds}", "top_logprobs")
        body["logprobs"] = top


def _completion_names(body: dict) -> None:
    """One prompt may come in a list; log-probabilities have a narrower range."""
    prompt, wanted = body.get("prompt"), body.get("logprobs")
    if isinstance(prompt, list) and prompt and all(isinstance(own, str | list) for own in prompt):
        words = f"prompt is a list of {len(prompt)} prompts; give each a line of its own"
        refuse_unless(len(prompt) == 1, words, "prompt", "unsupported_value")
        body["prompt"] = prompt[0]
    if isinstance(wanted, int) and not isinstance(wanted, bool):
        most = MAX_COMPLETION_LOGPROBS
        refuse_unless(wanted <= most, f"logprobs={wanted} must be from 0 to {most}", "logprobs")
