"""Batched decoding with a KV cache: one compiled prefill and one compiled decode per size of request.

Requests are grouped by their own size alone, and every group has the same number of rows. So the shapes that a
request meets, and with them its text, do not depend on the other requests.
"""

import collections
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from moejax.model import forward as decoder
from moejax.ops.sampling import SamplingRows, sample
from moejax.seams import Batch
from moejax.serving.request import (
    Request,
    RequestError,
    Sampling,
    SamplingOptions,
    make_request,
    refuse_unless,
)

MIN_BUCKET = 16  # lengths are rounded up to this times a power of two: few compilations
STEPS = 32  # tokens per row that one call decodes; the host looks in between
MAX_ROWS = 8  # of a group, unless the caller says otherwise


@dataclasses.dataclass(frozen=True)
class Completion:
    """What the model wrote after one prompt."""

    text: str
    tokens: tuple[int, ...]  # without the end token
    finish_reason: str  # stop: the model ended the text | length: max_tokens or the context did
    prompt_tokens: int  # the begin token included


@struct.dataclass
class Rows:
    """A group between two calls. A row's last token is not in the cache yet; it is at position `pos_B`."""

    cache: Any
    token_B: jax.Array  # i32
    pos_B: jax.Array  # i32
    left_B: jax.Array  # i32; tokens that may still come
    stopped_B: jax.Array  # bool; the end token came
    settings: SamplingRows

    @property
    def active_B(self):
        """Rows that are not finished."""
        return ~self.stopped_B & (self.left_B > 0)


def generate(
    model, prompts: Sequence[str | Sequence[int]], *, batch_rows: int = 0, **sampling: Unpack[SamplingOptions]
) -> list[Completion]:
    """Continue every prompt; the completions come in the order of the prompts.

    Args:
      model: a `moejax.Model`.
      prompts: texts, or lists of token ids that are taken as they are.
      batch_rows: prompts decoded together; 0 takes as many as there are, up to 8. For one number of rows a
        prompt's completion is the same whatever the other prompts are.
      **sampling: fields of `Sampling`, each one value for all prompts or a list with one per prompt.

    Raises:
      RequestError: a prompt or a setting cannot work; names the prompt.

    >>> from configs import base
    >>> run = base.tiny()
    >>> model = Model(run.model, init(jax.random.key(0), run.model), byte_tokenizer(), context=64)
    >>> one, two = generate(model, ["def ", "class "], max_tokens=5, temperature=1.0, seed=[1, 2])
    >>> len(one.tokens), one.finish_reason, one.prompt_tokens
    (5, 'length', 5)
    """
    refuse_unless(not isinstance(prompts, str), "prompts is one text; give a list of texts", "prompts", "invalid_type")
    columns = {name: _per_prompt(name, value, len(prompts)) for name, value in sampling.items()}
    requests = []
    for i, prompt in enumerate(prompts):
        try:
            own = Sampling(**{name: column[i] for name, column in columns.items()})
            requests.append(make_request(model, prompt, own))
        except RequestError as error:
            raise RequestError(f"prompts[{i}]: {error}", error.param, error.code) from None
    completions = dict(complete(model, requests, batch_rows))
    return [completions[i] for i in range(len(requests))]


def _per_prompt(name: str, value, count: int) -> Sequence:
    known = [field.name for field in dataclasses.fields(Sampling)]
    refuse_unless(name in known, f"{name} is no setting of sampling; there are {', '.join(known)}", name)
    if not isinstance(value, list | tuple):
        return [value] * count
    refuse_unless(len(value) == count, f"{name} has {len(value)} values for {count} prompts", name)
    return value


def complete(model, requests: Sequence[Request], batch_rows: int = 0) -> Iterator[tuple[int, Completion]]:
    """(index of the request, its completion) in the order in which they are finished; as `generate`."""
    rows = batch_rows or bucket(len(requests), 1, MAX_ROWS)
    for (prompt_len, length), indices in group_by_size(requests, model.context).items():
        for first in range(0, len(indices), rows):
            own = indices[first : first + rows]
            group = [requests[i] for i in own]
            yield from zip(own, _decode_group(model, group, (rows, prompt_len, length)), strict=True)


def bucket(size: int, least: int, most: int) -> int:
    """The smallest `least` * 2^n that holds `size`, but at most `most`."""
    while least < size:
        least *= 2
    return min(least, most)


def group_by_size(requests: Sequence[Request], context: int) -> dict[tuple[int, int], list[int]]:
    """Indices of requests by (padded prompt, padded prompt with completion)."""
    groups = collections.defaultdict(list)
    for i, request in enumerate(requests):
        size = len(request.tokens)
        padded = bucket(size, MIN_BUCKET, context)
        groups[padded, bucket(size + request.sampling.max_tokens, MIN_BUCKET, context)].append(i)
    return groups


def _decode_group(model, group: list[Request], shape: tuple[int, int, int]) -> list[Completion]:
    """Completions of at most `shape[0]` requests whose sizes `shape[1:]` hold."""
    num_rows, prompt_len, length = shape
    token_BT = np.zeros((num_rows, prompt_len), np.int32)
    for row, request in enumerate(group):
        token_BT[row, : len(request.tokens)] = request.tokens
    size_B = np.array([len(r.tokens) for r in group] + [0] * (num_rows - len(group)), np.int32)
    max_B = np.array([r.sampling.max_tokens for r in group] + [0] * (num_rows - len(group)), np.int32)
    rows = prefill(
        model.params, model.sides, token_BT, size_B, max_B, _settings(group, num_rows),
        m=model.cfg, length=length, eos=model.tokenizer.eos,
    )  # fmt: skip
    written = [[] if stopped else [token] for token, stopped in zip(*_host(rows.token_B, rows.stopped_B), strict=True)]
    while np.any(rows.active_B):
        rows, token_BT, count_B = decode(model.params, model.sides, rows, m=model.cfg, eos=model.tokenizer.eos)
        for own, token_T, count in zip(written, *_host(token_BT, count_B), strict=True):
            own.extend(token_T[:count])
    stopped = np.asarray(rows.stopped_B)
    return [_completion(model, request, written[row], stopped[row]) for row, request in enumerate(group)]


def _host(*arrays):
    return [np.asarray(array).tolist() for array in arrays]


def _settings(group: list[Request], num_rows: int) -> SamplingRows:
    def column(name: str, idle, dtype):
        values = [getattr(request.sampling, name) for request in group]
        return np.array(values + [idle] * (num_rows - len(group)), dtype)

    return SamplingRows(
        temperature_B=column("temperature", 0, np.float32),
        top_k_B=np.minimum(column("top_k", 0, np.int64), np.iinfo(np.int32).max).astype(np.int32),
        top_p_B=column("top_p", 1, np.float32),
        seed_B=column("seed", 0, np.uint32),
    )


def _completion(model, request: Request, tokens: list[int], stopped: bool) -> Completion:
    reason = "stop" if stopped else "length"
    return Completion(model.tokenizer.decode(tokens), tuple(tokens), reason, len(request.tokens))


@functools.partial(jax.jit, static_argnames=("m", "length", "eos"))
def prefill(params, sides, token_BT, size_B, max_B, settings, *, m, length: int, eos: int) -> Rows:
    """Read the prompts and draw the first token of each.

    Args:
      token_BT: prompts, padded on the right.
      size_B: their lengths; 0 for a row without a request.
      max_B: tokens that may come.
      length: positions of the cache.
    """
    B, T = token_BT.shape
    pos_BT = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), (B, T))
    batch = Batch(token_BT, pos_BT, jnp.ones((B, T), jnp.int32), pos_BT < size_B[:, None])
    out = decoder.forward(params, m, batch, cache=decoder.init_cache(m, B, length), sides=sides)
    last_B = jnp.maximum(size_B - 1, 0)
    last_B1D = jnp.take_along_axis(out.hidden_BTD, last_B[:, None, None], axis=1)
    logits_BV = decoder.unembed(params, m, last_B1D)[:, 0]  # of the last position alone; the others are dropped
    token_B = sample(logits_BV, settings, size_B)
    return Rows(out.cache, token_B, size_B, max_B - 1, token_B == eos, settings)


@functools.partial(jax.jit, static_argnames=("m", "eos"), donate_argnames="rows")
def decode(params, sides, rows: Rows, *, m, eos: int):
    """(rows, token_BT, count_B): up to STEPS more tokens of each row, of which the first `count_B` count."""

    def body(carry):
        step, rows, token_BT, count_B = carry
        active_B = rows.active_B
        seg_B1 = jnp.ones_like(rows.token_B)[:, None]
        batch = Batch(rows.token_B[:, None], rows.pos_B[:, None], seg_B1, active_B[:, None])
        out = decoder.forward(params, m, batch, cache=rows.cache, sides=sides)
        token_B = sample(out.logits_BTV[:, 0], rows.settings, rows.pos_B + 1)
        stopped_B = rows.stopped_B | (active_B & (token_B == eos))
        more_B = (active_B & ~stopped_B).astype(jnp.int32)
        rows = rows.replace(
            cache=out.cache,
            token_B=token_B,
            pos_B=rows.pos_B + more_B,
            left_B=rows.left_B - more_B,
            stopped_B=stopped_B,
        )
        return step + 1, rows, token_BT.at[:, step].set(token_B), count_B + more_B

    def go_on(carry):
        step, rows, _, _ = carry
        return (step < STEPS) & jnp.any(rows.active_B)

    count_B = jnp.zeros_like(rows.token_B)
    token_BT = jnp.zeros((len(count_B), STEPS), jnp.int32)
    _, rows, token_BT, count_B = jax.lax.while_loop(go_on, body, (0, rows, token_BT, count_B))
    return rows, token_BT, count_B
