"""The memory of a Hopper GPU that is not here: buffers, views of them, barriers. See `hopper.py`."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jax._src.pallas.mosaic_gpu import core
from jax._src.state import indexing, types

PATIENCE = 60  # seconds until a wait counts as endless


def unset(shape, dtype) -> np.ndarray:
    floating = jnp.issubdtype(dtype, jnp.floating)
    return np.full(shape, np.nan if floating else -(2**30), dtype)


@dataclasses.dataclass(eq=False)
class Buffer:
    """Memory, or the registers of an accumulator."""

    data: np.ndarray
    uncommitted_by: set = dataclasses.field(default_factory=set)


class Barrier:
    """Barriers of one allocation share nothing but their number of arrivals."""

    def __init__(self, block, arrivals: int):
        self.block, self.needed = block, arrivals
        self.arrived, self.copies, self.waits = 0, [], {}

    def arrive(self):
        with self.block.changed:
            self.arrived += 1
            self.block.changed.notify_all()

    def wait(self, who: int):
        seen = self.waits[who] = self.waits.get(who, 0) + 1
        with self.block.changed:

            def open_now():
                while self.copies:
                    self.copies.pop(0)()
                    self.arrived += 1
                    self.block.changed.notify_all()
                return self.block.failed or self.arrived // self.needed >= seen

            assert self.block.changed.wait_for(open_now, PATIENCE), "a wait that does not end"
            assert not self.block.failed, "another warp group failed"
            assert self.arrived // self.needed == seen, "the barrier is phases ahead of one that waits"


class View:
    """A reference: memory or barriers, a place in it, and whether it is read the other way round."""

    def __init__(self, buffer, shape):
        self.buffer, self.flipped = buffer, False
        self.place = [slice(0, size) for size in shape]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(at.stop - at.start for at in self.place if isinstance(at, slice))

    def through(self, transforms) -> "View":
        """What a chain of transforms of a reference leads to; how tiles are laid out does not matter here."""
        view = View(self.buffer, ())
        view.place, view.flipped = list(self.place), self.flipped
        for transform in transforms:
            if isinstance(transform, types.TransposeTransform):
                view.flipped = not view.flipped
            elif isinstance(transform, indexing.NDIndexer):
                assert not view.flipped
                view._narrow(transform.indices)
            else:
                assert isinstance(transform, core.UnswizzleRef | core.UntilingTransform), transform
        return view

    def _narrow(self, indices):
        dims = [dim for dim, at in enumerate(self.place) if isinstance(at, slice)]
        for dim, index in zip(dims, indices, strict=True):
            start = self.place[dim].start
            if isinstance(index, indexing.Slice):
                assert index.stride == 1
                start += int(index.start)
                self.place[dim] = slice(start, start + index.size)
            else:
                self.place[dim] = start + int(index)

    def _inside(self):
        """The part of the place that exists, in the memory and in this view."""
        there = tuple(
            slice(at.start, min(at.stop, size)) if isinstance(at, slice) else at
            for at, size in zip(self.place, self.buffer.data.shape, strict=True)
        )
        return there, tuple(slice(0, max(at.stop - at.start, 0)) for at in there if isinstance(at, slice))

    def read(self, beyond: bool = False) -> np.ndarray:
        there, here = self._inside()
        part = self.buffer.data[there]
        assert beyond or part.shape == self.shape, f"{self.place} is beyond {self.buffer.data.shape}"
        whole = np.zeros(self.shape, part.dtype)
        whole[here] = part
        return whole.T if self.flipped else whole

    def write(self, value, beyond: bool = False) -> None:
        there, here = self._inside()
        assert beyond or self.buffer.data[there].shape == self.shape, f"{self.place} is beyond"
        self.buffer.data[there] = np.asarray(value)[here]

    def barrier(self) -> Barrier:
        """The one that is meant."""
        (at,) = self.place
        assert not isinstance(at, slice) or self.shape == (1,)
        return self.buffer[at if isinstance(at, int) else at.start]
