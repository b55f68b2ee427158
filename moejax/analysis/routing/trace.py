"""The routing of a text: one record, and one file format.

A trace holds the tokens that passed through a model, one after the other, and what every router did with
each of them. It is gathered by `moejax.tracing`, in training, evaluation and serving alike.
"""

import dataclasses
import io
import itertools
import json
import os
import pathlib
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from moejax import durable
from moejax.config import require
from moejax.errors import DataError, StorageError, UsageError

FORMAT = "moejax routing trace 1"


@dataclasses.dataclass(frozen=True)
class Layer:
    """What one router did with the tokens of a trace; expert E is an empty slot."""

    index: int  # of the block in the model, from 0
    num_experts: int  # E
    expert_NK: np.ndarray
    gate_NK: np.ndarray  # float16
    kept_NK: np.ndarray  # bool; chosen and really computed
    score_NE: np.ndarray | None  # float16; each token's sum to 1

    @property
    def full_NK(self) -> np.ndarray:
        """Which slots hold an expert."""
        return self.expert_NK < self.num_experts

    @property
    def mask_NE(self) -> np.ndarray:
        """Which experts each token chose."""
        mask_NE = np.zeros((len(self.expert_NK), self.num_experts + 1), bool)
        np.put_along_axis(mask_NE, self.expert_NK.astype(np.int64), True, axis=1)
        return mask_NE[:, :-1]

    @property
    def top_N(self) -> np.ndarray:
        """The first choice, dropped or not; E where there is none."""
        return self.expert_NK[:, 0].astype(int)

    @property
    def slots_per_token(self) -> float:
        """Mean number of experts that a token chose."""
        return float(self.full_NK.sum(axis=1).mean())

    def count_slots(self, group_N: np.ndarray, num_groups: int) -> np.ndarray:
        """Slots of each expert by group of tokens, [groups, E]."""
        E = self.num_experts
        at_NK = group_N[:, None].astype(np.int64) * (E + 1) + self.expert_NK
        return np.bincount(at_NK.ravel(), minlength=num_groups * (E + 1)).reshape(num_groups, E + 1)[:, :E]


@dataclasses.dataclass(frozen=True)
class RoutingTrace:
    """What the routers of a model did with some texts, token by token.

    The tokens of a text follow one another, and so do the texts. A layer with E experts marks an empty slot
    (of an absent choice) by expert E and gate 0.
    """

    token_N: np.ndarray  # int32; ids
    pos_N: np.ndarray  # int32; position in the text, as the model saw it
    text_N: np.ndarray  # int32; which text, never falling
    row_N: np.ndarray  # int32; which row of a batch, one after the other
    place_N: np.ndarray  # int32; where in the row
    layer_L: np.ndarray  # int32; blocks with a router, by their place in the model
    experts_L: np.ndarray  # int32; how many experts each has
    expert_LNK: np.ndarray  # uint8 or uint16; the first choice first
    gate_LNK: np.ndarray  # float16
    kept_LNK: np.ndarray  # bool; chosen and really computed
    score_LNE: np.ndarray | None = None  # float16; scores divided by the sum of the token's scores
    label_N: np.ndarray | None = None  # int16; an index into `labels`
    labels: tuple[str, ...] = ()  # domains, kinds of tokens, or what else tokens are grouped by
    name: str = ""  # of the model
    step: int | None = None  # of its training

    def __post_init__(self):
        for field, (dtypes, _) in ARRAYS.items():
            value = getattr(self, field)
            if value is not None:
                require(value.dtype in dtypes, f"{field} is {value.dtype}; it must be {dtypes[0]}")
        self._check_shapes()
        self._check_values()

    def _check_shapes(self):
        L, N, K = self.expert_LNK.shape if self.expert_LNK.ndim == 3 else (0, 0, 0)
        require(
            L > 0 and K > 0, f"expert_LNK has shape {self.expert_LNK.shape}; layers and slots are missing"
        )
        require(N > 0, "there are no tokens in it")
        sizes = {"L": L, "N": N, "K": K, "E": int(self.experts_L.max(initial=0))}
        for field, (_, letters) in ARRAYS.items():
            value, wanted = getattr(self, field), tuple(sizes[letter] for letter in letters)
            if value is not None:
                require(value.shape == wanted, f"{field} has shape {value.shape}; it must be {wanted}")

    def _check_values(self):
        most_L11 = self.experts_L[:, None, None]
        require(
            bool((self.expert_LNK <= most_L11).all()),
            f"an expert is {self.expert_LNK.max()}, but the layers have {self.experts_L.tolist()} experts",
        )
        require(bool((np.diff(self.text_N) >= 0).all()), "the texts are not one after the other")
        if self.label_N is not None:
            most = len(self.labels) - 1
            good = (self.label_N >= 0) & (self.label_N <= most)
            require(bool(good.all()), f"a label is none of 0 to {most}, those that have names")

    @property
    def num_tokens(self) -> int:
        """N."""
        return len(self.token_N)

    @property
    def num_texts(self) -> int:
        return len(np.unique(self.text_N))

    @property
    def num_slots(self) -> int:
        """K."""
        return self.expert_LNK.shape[2]

    def layers(self) -> Iterator[Layer]:
        """Each router of the model, lowest first."""
        for i, (index, E) in enumerate(zip(self.layer_L.tolist(), self.experts_L.tolist(), strict=True)):
            score_NE = None if self.score_LNE is None else self.score_LNE[i, :, :E]
            yield Layer(index, E, self.expert_LNK[i], self.gate_LNK[i], self.kept_LNK[i], score_NE)

    def texts(self) -> list[slice]:
        """The tokens of each text."""
        edges = np.flatnonzero(np.diff(self.text_N, prepend=-1, append=-1))
        return [slice(int(a), int(b)) for a, b in itertools.pairwise(edges)]

    def labelled(self, label_N: np.ndarray, labels: tuple[str, ...]) -> "RoutingTrace":
        """The same trace with a label per token, an index into `labels`."""
        return dataclasses.replace(self, label_N=np.asarray(label_N, np.int16), labels=tuple(labels))

    def share_by_label(self) -> list[np.ndarray]:
        """Per layer, [labels, E]: of the slots of one label, each expert's share; NaN for an unused label."""
        shares = []
        for layer in self.layers():
            slots_CE = layer.count_slots(self.label_N, len(self.labels)).astype(float)
            total_C1 = slots_CE.sum(axis=1, keepdims=True)
            shares.append(
                np.divide(slots_CE, total_C1, out=np.full_like(slots_CE, np.nan), where=total_C1 > 0)
            )
        return shares

    def save(self, path: str | os.PathLike) -> None:
        """Write the trace to `path`, an .npz file; it appears whole or not at all.

        Raises:
          UsageError: there is no such directory.
          StorageError: the disk is full or failed.
        """
        path = pathlib.Path(path)
        require(
            path.parent.is_dir(), f"there is no directory {str(path.parent)!r} for a trace; make it first"
        )
        require(not path.is_dir(), f"{path} is a directory; name a file in it")
        arrays = {field: getattr(self, field) for field in ARRAYS}
        meta = {"format": FORMAT, "labels": self.labels, "name": self.name, "step": self.step}
        data = io.BytesIO()
        np.savez_compressed(
            data, meta=np.array(json.dumps(meta)), **{k: v for k, v in arrays.items() if v is not None}
        )
        try:
            durable.write_file(path, data.getvalue())
        except OSError as error:
            raise StorageError(f"the trace cannot be written to {path}: {error.strerror}") from error

    @classmethod
    def load(cls, path: str | os.PathLike) -> "RoutingTrace":
        """Read a trace and check it.

        Raises:
          UsageError: there is no such file.
          DataError: it is broken, or no routing trace.
        """
        path = pathlib.Path(path)
        require(path.is_file(), f"there is no file {str(path)!r}; name a trace that moejax has saved")
        try:
            with path.open("rb") as file:
                found = dict(np.load(file, allow_pickle=False).items())
        except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"{path} cannot be read as .npz ({error}); trace the model again") from error
        try:
            meta = _meta(found)
            missing = [f for f in ARRAYS if f not in found and f not in ("score_LNE", "label_N")]
            require(not missing, f"it has no {', '.join(missing)}")
            arrays = {field: found[field] for field in ARRAYS if field in found}
            return cls(**arrays, labels=tuple(meta["labels"]), name=meta["name"], step=meta["step"])
        except UsageError as error:
            raise DataError(f"{path} is no routing trace: {error}; trace the model again") from error


_INT, _SMALL, _HALF, _BOOL = (np.int32,), (np.uint8, np.uint16), (np.float16,), (np.bool_,)
ARRAYS = {  # of a trace: what each may hold, and its dims
    "token_N": (_INT, "N"),
    "pos_N": (_INT, "N"),
    "text_N": (_INT, "N"),
    "row_N": (_INT, "N"),
    "place_N": (_INT, "N"),
    "layer_L": (_INT, "L"),
    "experts_L": (_INT, "L"),
    "expert_LNK": (_SMALL, "LNK"),
    "gate_LNK": (_HALF, "LNK"),
    "kept_LNK": (_BOOL, "LNK"),
    "score_LNE": (_HALF, "LNE"),
    "label_N": ((np.int16,), "N"),
}


def _meta(found: dict[str, np.ndarray]) -> dict[str, Any]:
    """The words of a file that is a trace."""
    try:
        meta = json.loads(str(found["meta"]))
        written = meta["format"]
    except (KeyError, TypeError, ValueError):
        raise UsageError(
            f"it holds {', '.join(sorted(found)) or 'nothing'}, and no word of a trace"
        ) from None
    require(written == FORMAT, f"its format is {written!r}, this version of moejax reads {FORMAT!r}")
    labels, name, step = (meta.get(key) for key in ("labels", "name", "step"))
    good = isinstance(labels, list) and all(isinstance(label, str) for label in labels)
    good &= isinstance(name, str) and (step is None or type(step) is int)
    require(good, f"its words are {meta}, not labels, a name and a step")
    return meta
