"""Batched decoding with a KV cache: one compiled prefill and one compiled decode per size of request.

Requests are grouped by their own size alone, and every group has the same number of rows. So the shapes that
a request meets, and with them its text, do not depend on the other requests.
"""

import collections
import functools
import time
from collections.abc import Iterator, Sequence
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from moejax.model import forward as decoder
from moejax.ops.sampling import Likelihoods, SamplingRows, likelihoods, sample
from moejax.seams import Batch
from moejax.serving.causal import causal
from moejax.serving.completion import Completion, Likelihood, Writer
from moejax.serving.request import (
    Request,
    RequestError,
    Sampling,
    SamplingOptions,
    make_request,
    per_prompt,
    refuse_unless,
)
from moejax.serving.unroll import unrolled

# Lengths are rounded up to these times a power of two: few compilations.
MIN_PROMPT = 32
MIN_CACHE = 256
STEPS = 16  # tokens per row that one call decodes; the host looks in between
MAX_ROWS = 8  # of a group, unless the caller says otherwise


@struct.dataclass
class Rows:
    """A group between two calls. A row's last token is not in the cache yet; it is at position `pos_B`."""

    cache: Any
    end_N: jax.Array  # i32; the ids that end a text
    token_B: jax.Array  # i32
    pos_B: jax.Array  # i32
    left_B: jax.Array  # i32; tokens that may still come
    stopped_B: jax.Array  # bool; an end token came
    settings: SamplingRows
    likely: jax.Array  # bool; somebody wants likelihoods
    likelihoods: Likelihoods | None = None  # of `token_B`
    probe: Any = struct.field(pytree_node=False, default=None)  # of the forward passes

    @property
    def active_B(self):
        """Rows that are not finished."""
        return ~self.stopped_B & (self.left_B > 0)

    @property
    def drawn(self):
        """(token_B, likelihoods) as they were drawn last."""
        return self.token_B, self.likelihoods


def generate(
    model,
    prompts: Sequence[str | Sequence[int]],
    *,
    batch_rows: int = 0,
    recorder=None,
    **sampling: Unpack[SamplingOptions],
) -> list[Completion]:
    """Continue every prompt; the completions come in the order of the prompts.

    Args:
      model: a `moejax.Model`.
      prompts: texts, or lists of token ids that are taken as they are.
      batch_rows: prompts decoded together; 0 takes as many as there are, up to 8. For one number of rows a
        prompt's completion is the same whatever the other prompts are.
      recorder: a `moejax.TraceRecorder` that notes the routing of every token that passes through the model.
      **sampling: fields of `Sampling`, each one value for all prompts or a list with one per prompt.

    Raises:
      RequestError: a prompt or a setting cannot work; names the prompt.

    >>> import jax, moejax
    >>> from configs import base
    >>> from moejax.training.data.tokenizer import byte_tokenizer
    >>> cfg = base.tiny().model
    >>> model = moejax.Model(cfg, moejax.init(jax.random.key(0), cfg), byte_tokenizer(), context=64)
    >>> one, two = moejax.generate(model, ["def ", "class "], max_tokens=5, temperature=1.0, seed=[1, 2])
    >>> len(one.tokens), one.finish_reason, one.prompt_tokens
    (5, 'length', 5)
    """
    refuse_unless(not isinstance(prompts, str), "prompts is one text; give a list of texts", "prompts")
    columns = {name: per_prompt(name, value, len(prompts)) for name, value in sampling.items()}
    requests = []
    for i, prompt in enumerate(prompts):
        try:
            own = Sampling(**{name: column[i] for name, column in columns.items()})
            requests.append(make_request(model, prompt, own))
        except RequestError as error:
            raise RequestError(f"prompts[{i}]: {error}", error.param, error.code) from None
    completions = dict(complete(unrolled(causal(model)), requests, batch_rows, recorder))
    return [completions[i] for i in range(len(requests))]


def complete(
    model, requests: Sequence[Request], batch_rows: int = 0, recorder=None
) -> Iterator[tuple[int, Completion]]:
    """(index of the request, its completion) in the order in which they are finished; as `generate`.

    Give it an `unrolled` model: it is several times faster.
    """
    rows = batch_rows or bucket(len(requests), 1, MAX_ROWS)
    first_row = recorder.num_rows if recorder else 0
    begin = time.monotonic()
    for (prompt_len, length), indices in group_by_size(requests, model.context).items():
        for first in range(0, len(indices), rows):
            own = indices[first : first + rows]
            group = [requests[i] for i in own]
            notes = Notes(recorder, first_row + np.array(own + own[:1] * (rows - len(own))))
            done = _decode_group(model, group, (rows, prompt_len, length), notes, begin)
            yield from zip(own, done, strict=True)


def bucket(size: int, least: int, most: int) -> int:
    """The smallest `least` * 2^n that holds `size`, but at most `most`."""
    while least < size:
        least *= 2
    return min(least, most)


def group_by_size(requests: Sequence[Request], context: int) -> dict[tuple[int, int], list[int]]:
    """Indices of requests by (positions of the padded prompt, positions of the cache)."""
    groups = collections.defaultdict(list)
    for i, request in enumerate(requests):
        size = len(request.tokens)
        length = bucket(size + request.sampling.max_tokens, MIN_CACHE, context)
        groups[bucket(size, MIN_PROMPT, context), length].append(i)
    return groups


def _decode_group(
    model, group: list[Request], shape: tuple[int, int, int], notes: "Notes", begin: float
) -> list[Completion]:
    """Completions of at most `shape[0]` requests whose sizes `shape[1:]` hold; asked for at `begin`."""
    num_rows, prompt_len, length = shape
    token_BT = np.zeros((num_rows, prompt_len), np.int32)
    for row, request in enumerate(group):
        token_BT[row, : len(request.tokens)] = request.tokens
    writers = [Writer(model.tokenizer, request) for request in group]
    rows = _new_rows(model, group, num_rows).replace(probe=notes.probe)
    rows, seen = prefill(model.params, model.sides, token_BT, rows, m=model.cfg, length=length)
    notes.prompt(seen)
    drawn, count_B = jax.tree.map(lambda x: x[:, None], rows.drawn), ~rows.stopped_B
    while True:
        over = _take(writers, drawn, count_B, begin)
        if any(over):
            over_B = np.array(over + [False] * (num_rows - len(over)))
            rows = rows.replace(left_B=jnp.where(over_B, 0, rows.left_B))
        if not np.any(rows.active_B):
            break
        rows, drawn, count_B, seen = decode(model.params, model.sides, rows, m=model.cfg)
        notes.generated(seen)
    stopped = np.asarray(rows.stopped_B)
    return [writer.completion(bool(stopped[row])) for row, writer in enumerate(writers)]


def _take(writers: list[Writer], drawn, count_B, begin: float) -> list[bool]:
    """Give every writer its first `count_B` drawn tokens; for which of them a stop text came."""
    token_BT, likelihoods = drawn
    tokens, counts = _host(token_BT, count_B)
    now, own = time.monotonic() - begin, jax.tree.map(np.asarray, likelihoods)
    over = []
    for row, writer in enumerate(writers):
        count, most = int(counts[row]), writer.logprobs
        likely = [] if most is None else [Likelihood.read(own, (row, t), most) for t in range(count)]
        over.append(writer.add(tokens[row][:count], now, likely))
    return over


class Notes:
    """What a recorder is told about a group; without a recorder, nothing."""

    def __init__(self, recorder, row_B: np.ndarray):
        self._recorder, self._row_B = recorder, row_B
        self.probe = recorder.probe if recorder else None

    def prompt(self, seen) -> None:
        """Of a prefill: a batch, and what the probe saw."""
        if self._recorder:
            self._recorder.add(*seen, self._row_B, label="prompt")

    def generated(self, seen) -> None:
        """Of several decode steps: batches [STEPS, B, 1], and what the probe saw, stacked likewise."""
        if self._recorder:
            batch, probes = jax.tree.map(np.asarray, seen)
            batch = jax.tree.map(lambda x_SB1: x_SB1[:, :, 0].T, batch)
            # [STEPS, layers, B, 1, ...] to [layers, B, STEPS, ...]; one number per layer never changes
            probes = jax.tree.map(lambda x: np.moveaxis(x[:, :, :, 0], 0, 2) if x.ndim > 2 else x[0], probes)
            self._recorder.add(batch, probes, self._row_B, label="generated")


def _host(*arrays):
    return [np.asarray(array).tolist() for array in arrays]


def _new_rows(model, group: list[Request], num_rows: int) -> Rows:
    def column(values, idle, dtype):
        return np.array([*values, *[idle] * (num_rows - len(group))], dtype)

    def setting(name: str, idle, dtype):
        return column((getattr(request.sampling, name) for request in group), idle, dtype)

    return Rows(
        cache=None,
        end_N=np.array(model.tokenizer.ends if model.tokenizer else (), np.int32),
        token_B=np.zeros(num_rows, np.int32),
        pos_B=column((len(request.tokens) for request in group), 0, np.int32),
        left_B=setting("max_tokens", 0, np.int32),
        stopped_B=np.zeros(num_rows, bool),
        settings=SamplingRows(
            temperature_B=setting("temperature", 0, np.float32),
            top_k_B=column((min(request.sampling.top_k, model.cfg.vocab) for request in group), 0, np.int32),
            top_p_B=setting("top_p", 1, np.float32),
            seed_B=setting("seed", 0, np.uint32),
            min_p_B=setting("min_p", 0, np.float32),
        ),
        likely=np.array(any(request.sampling.logprobs is not None for request in group)),
    )


@functools.partial(jax.jit, static_argnames=("m", "length"))
def prefill(params, sides, token_BT, rows: Rows, *, m, length: int):
    """(rows, seen): read the prompts into a new cache of `length` positions and draw the first token of each.

    Args:
      token_BT: prompts, padded on the right.
      rows: without a cache; `pos_B` is the length of each prompt, 0 for a row without a request.

    With a probe, `seen` is (the batch, what the probe saw).
    """
    B, T = token_BT.shape
    pos_BT = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), (B, T))
    batch = Batch(token_BT, pos_BT, jnp.ones((B, T), jnp.int32), pos_BT < rows.pos_B[:, None])
    out = decoder.forward(
        params, m, batch, cache=decoder.init_cache(m, B, length), sides=sides, probe=rows.probe
    )
    last_B11 = jnp.maximum(rows.pos_B - 1, 0)[:, None, None]
    last_B1D = jnp.take_along_axis(out.hidden_BTD, last_B11, axis=1)
    logits_B1V = decoder.unembed(params, m, last_B1D)  # nobody reads the logits of the other positions
    rows, _ = _draw(rows.replace(cache=out.cache), logits_B1V[:, 0], rows.pos_B)
    return rows, (batch, out.probes) if rows.probe else ()


@functools.partial(jax.jit, static_argnames="m", donate_argnames="rows")
def decode(params, sides, rows: Rows, *, m):
    """(rows, drawn, count_B, seen): up to STEPS more tokens per row; the first `count_B` are there.

    `drawn` is that of the rows with a dim over the steps, and so is `seen` that of `prefill`, with a probe.
    """

    def unfinished(carry):
        step, rows, *_ = carry
        return (step < STEPS) & jnp.any(rows.active_B)

    def one(rows):
        seg_B1 = jnp.ones_like(rows.token_B)[:, None]
        batch = Batch(rows.token_B[:, None], rows.pos_B[:, None], seg_B1, rows.active_B[:, None])
        out = decoder.forward(params, m, batch, cache=rows.cache, sides=sides, probe=rows.probe)
        rows, new_B = _draw(rows.replace(cache=out.cache), out.logits_BTV[:, 0], rows.pos_B + 1)
        return rows, new_B, (batch, out.probes) if rows.probe else ()

    def body(carry):
        step, rows, drawn, count_B, seen = carry
        rows, new_B, own = one(rows)
        drawn = jax.tree.map(lambda all_steps, x: all_steps.at[:, step].set(x), drawn, rows.drawn)
        seen = jax.tree.map(lambda all_steps, x: all_steps.at[step].set(x), seen, own)
        return step + 1, rows, drawn, count_B + new_B, seen

    count_B = jnp.zeros_like(rows.token_B)
    drawn = jax.tree.map(lambda x: jnp.zeros((len(x), STEPS, *x.shape[1:]), x.dtype), rows.drawn)
    seen = jax.tree.map(lambda x: jnp.zeros((STEPS, *x.shape), x.dtype), jax.eval_shape(one, rows)[2])
    _, *decoded = jax.lax.while_loop(unfinished, body, (0, rows, drawn, count_B, seen))
    return tuple(decoded)


def _draw(rows: Rows, logits_BV, pos_B):
    """(rows after the token at `pos_B`, which of them got one); finished rows stay finished."""
    active_B = rows.active_B
    token_B = sample(logits_BV, rows.settings, pos_B)
    ended_B = jnp.any(token_B[:, None] == rows.end_N[None, :], axis=1)
    stopped_B = rows.stopped_B | (active_B & ended_B)
    new_B = active_B & ~stopped_B
    rows = rows.replace(token_B=token_B, pos_B=pos_B, left_B=rows.left_B - new_B, stopped_B=stopped_B)
    return rows.replace(likelihoods=likelihoods(logits_BV, token_B, rows.likely)), new_B
