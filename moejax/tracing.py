"""Gathers the routing of a model while it works: in training, in evaluation, and in serving.

    trace = moejax.routing_trace(moejax.load("runs/default"), ["def main():", "import os"])
    trace.save("two.npz")

A trace is `moejax.analysis.routing.trace.RoutingTrace`; the forward pass knows nothing of it but a probe.
"""

from collections.abc import Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from moejax.analysis.routing.trace import RoutingTrace
from moejax.config import require
from moejax.losses.counts import shares
from moejax.model import forward as decoder
from moejax.seams import Batch


def probe(out, batch) -> dict[str, jax.Array]:
    """Of one block: the choice of every token."""
    if out.routing is None:
        return {}
    routing = out.routing
    return {
        "expert": routing.expert_BTK,
        "gate": routing.gate_BTK.astype(jnp.float16),
        "kept": routing.kept_BTK,
        "experts": jnp.int32(routing.score_BTE.shape[-1]),
    }


def probe_with_scores(out, batch) -> dict[str, jax.Array]:
    """Of one block: the choice of every token, and its scores divided by their sum."""
    seen = probe(out, batch)
    return seen | {"score": shares(out.routing).astype(jnp.float16)} if seen else {}


class TraceRecorder:
    """Puts together what a probe saw in several forward passes of one model.

    Args:
      scores: also record the scores of all experts.
    """

    def __init__(self, scores: bool = False):
        self.probe = probe_with_scores if scores else probe
        self._experts: dict[int, int] = {}  # of every block that routes, by its place in the model
        self._labels: dict[str, int] = {}
        self._parts: list[dict[str, np.ndarray]] = []
        self.num_rows = 0

    def add(
        self, batch: Batch, probes: tuple, row_B: np.ndarray | None = None, label: str | None = None
    ) -> None:
        """Record a forward pass.

        Args:
          batch: of the pass; absent tokens are left out.
          probes: `Output.probes` of `self.probe`.
          row_B: rows that hold one text each, which the batch begins or goes on with; None begins new rows,
            which may hold several.
          label: of all its tokens.

        Raises:
          UsageError: the model has no routers.
        """
        valid_BT = np.asarray(batch.valid_BT)
        B, T = valid_BT.shape
        place_BT = np.broadcast_to(np.arange(T), (B, T)) if row_B is None else np.asarray(batch.pos_BT)
        row_B = self.num_rows + np.arange(B) if row_B is None else row_B
        self.num_rows = max(self.num_rows, int(row_B.max(initial=-1)) + 1)
        part = {
            "token": np.asarray(batch.token_BT),
            "pos": np.asarray(batch.pos_BT),
            "seg": np.asarray(batch.seg_BT),
            "row": np.broadcast_to(row_B[:, None], (B, T)),
            "place": place_BT,
        }
        part = {name: value[valid_BT].astype(np.int32) for name, value in part.items()}
        if label is not None:
            index = self._labels.setdefault(label, len(self._labels))
            part["label"] = np.full(len(part["token"]), index, np.int16)
        self._parts.append(part | self._layers(probes, valid_BT))

    def trace(self, name: str = "", step: int | None = None) -> RoutingTrace:
        """All that was recorded, ordered by row and place.

        Raises:
          UsageError: nothing was.
        """
        require(any(len(part["token"]) for part in self._parts), "no token has passed through the model yet")
        axis = {"expert": 1, "gate": 1, "kept": 1, "score": 1}
        whole = {
            name: np.concatenate([part[name] for part in self._parts], axis=axis.get(name, 0))
            for name in self._parts[0]
        }
        order_N = np.lexsort((whole["place"], whole["row"]))
        whole = {key: np.take(value, order_N, axis=axis.get(key, 0)) for key, value in whole.items()}
        begins_N = np.diff(whole["row"], prepend=-1) != 0
        begins_N |= np.diff(whole["seg"], prepend=-1) != 0
        return RoutingTrace(
            token_N=whole["token"],
            pos_N=whole["pos"],
            text_N=np.cumsum(begins_N, dtype=np.int32) - 1,
            row_N=whole["row"],
            place_N=whole["place"],
            layer_L=np.array(list(self._experts), np.int32),
            experts_L=np.array(list(self._experts.values()), np.int32),
            expert_LNK=whole["expert"],
            gate_LNK=whole["gate"],
            kept_LNK=whole["kept"],
            score_LNE=whole.get("score"),
            label_N=whole.get("label"),
            labels=tuple(self._labels),
            name=name,
            step=step,
        )

    def _layers(self, probes: tuple, valid_BT: np.ndarray) -> dict[str, np.ndarray]:
        """The probes of one pass, a layer after the other, [L, n, K] of the n tokens that are there."""
        blocks = dict(enumerate(_unstacked(probes)))
        self._experts = {i: int(block.pop("experts")) for i, block in blocks.items() if block}
        require(
            bool(self._experts),
            "the model has no routers, so there is nothing to trace; choose one with a mixture of experts",
        )
        seen = [{name: x[valid_BT] for name, x in block.items()} for block in blocks.values() if block]
        K = max(layer["expert"].shape[-1] for layer in seen)
        most = max(self._experts.values())
        dtype = np.uint8 if most < 256 else np.uint16
        own_E = zip(seen, self._experts.values(), strict=True)
        stacked = {
            "expert": np.stack([_widen(layer["expert"], K, E) for layer, E in own_E]).astype(dtype),
            "gate": np.stack([_widen(layer["gate"], K, 0) for layer in seen]),
            "kept": np.stack([_widen(layer["kept"], K, False) for layer in seen]),
        }
        if "score" in seen[0]:
            stacked["score"] = np.stack([_widen(layer["score"], most, 0) for layer in seen])
        return stacked


def routing_trace(
    model,
    texts: Sequence[str | Sequence[int]],
    *,
    labels: Sequence[str] = (),
    scores: bool = False,
    batch_rows: int = 8,
) -> RoutingTrace:
    """What the routers of `model` do with `texts`.

    Args:
      model: a `moejax.Model`.
      texts: texts, or lists of token ids that are taken as they are. What is longer than the model's context
        goes on in a row of its own, from position 0.
      labels: what each text is, such as "python" or "prose"; none, or one per text.
      scores: also record the scores of all experts, which entropy and balance are computed from.
      batch_rows: texts that pass through the model at once.

    Raises:
      UsageError: the model has no routers, or the texts or labels cannot be used.

    >>> import jax, moejax
    >>> from configs import base
    >>> from moejax.training.data.tokenizer import byte_tokenizer
    >>> cfg = base.tiny().model
    >>> model = moejax.Model(cfg, moejax.init(jax.random.key(0), cfg), byte_tokenizer(), context=64)
    >>> trace = moejax.routing_trace(model, ["def ", "class "])
    >>> trace.expert_LNK.shape  # layers, tokens with the two begin tokens, experts of a token
    (2, 12, 2)
    """
    require(not isinstance(texts, str), "texts is one text; give a list of texts")
    require(len(texts) > 0, "texts is empty; give at least one text")
    require(
        len(labels) in (0, len(texts)),
        f"there are {len(labels)} labels for {len(texts)} texts; give one each",
    )
    rows, row_label = [], []
    names = tuple(dict.fromkeys(labels))
    for i, text in enumerate(texts):
        pieces = _pieces(model, text, i)
        rows += pieces
        row_label += [names.index(labels[i])] * len(pieces) if labels else []
    length = max(map(len, rows))
    starts = range(0, len(rows), batch_rows)
    batches = (_as_batch(rows[first : first + batch_rows], batch_rows, length) for first in starts)
    trace = trace_batches(model, batches, scores)
    return trace.labelled(np.array(row_label)[trace.row_N], names) if labels else trace


def trace_batches(model, batches: Iterable[Batch], scores: bool = False) -> RoutingTrace:
    """What the routers of a `moejax.Model` do with batches of packed text."""
    recorder = TraceRecorder(scores)
    for batch in batches:
        recorder.add(batch, _routed(model.params, batch, model.sides, m=model.cfg, probe=recorder.probe))
    return recorder.trace()


def _pieces(model, text: str | Sequence[int], index: int) -> list[np.ndarray]:
    """Token ids of a text, at most the model's context of them in a piece."""
    if isinstance(text, str):
        ids = np.array(model.tokenizer.encode_prompt(text), np.int32)
    else:
        ids = np.asarray(text)
        whole = ids.ndim == 1 and np.issubdtype(ids.dtype, np.integer) and ids.size > 0
        require(whole, f"texts[{index}] is {ids.dtype} {ids.shape}; give text, or whole numbers [T]")
        vocab = model.cfg.vocab
        good = bool(np.all((ids >= 0) & (ids < vocab)))
        require(good, f"texts[{index}] has ids outside 0 to {vocab - 1}")
    return [ids[first : first + model.context] for first in range(0, len(ids), model.context)]


def _as_batch(rows: list[np.ndarray], num_rows: int, length: int) -> Batch:
    """A document per row; rows that are missing are absent."""
    token_BT, valid_BT = np.zeros((num_rows, length), np.int32), np.zeros((num_rows, length), bool)
    for b, row in enumerate(rows):
        token_BT[b, : len(row)], valid_BT[b, : len(row)] = row, True
    pos_BT = np.broadcast_to(np.arange(length, dtype=np.int32), (num_rows, length))
    return Batch(token_BT, pos_BT, valid_BT.astype(np.int32), valid_BT)


def _forward(params, batch, sides, *, m, probe):
    return decoder.forward(params, m, batch, sides=sides, probe=probe).probes


_routed = jax.jit(_forward, static_argnames=("m", "probe"))


def _unstacked(probes: tuple) -> Iterator[dict[str, np.ndarray]]:
    """What the probe saw in every block of the model, lowest first."""
    for group in probes:
        repeat = next((len(value) for block in group for value in block.values()), 1)
        for i in range(repeat):
            yield from ({name: np.asarray(value[i]) for name, value in block.items()} for block in group)


def _widen(value: np.ndarray, width: int, fill) -> np.ndarray:
    """`value` with its last dim filled up to `width`."""
    return np.pad(value, ((0, 0), (0, width - value.shape[-1])), constant_values=fill)
