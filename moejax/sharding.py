"""From the name of a dim to the axes of a mesh: the one table of layouts.

Model code names dims; this module knows where they live. Under a mesh (`jax.set_mesh`, explicit axes)
the functions give PartitionSpecs, without one they give None, and the same code runs on one device.
"""

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from moejax.config import MeshConfig
from moejax.errors import UsageError

AXES = ("data", "fsdp", "expert", "tensor")

# Dim name -> mesh axes. "embed" is the width of a stored parameter; it is gathered before use. Experts of a
# sliced dispatch have "expert_embed" and "expert_ffn" in the place of "embed" and "ffn".
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp", "expert"),
    "embed": ("fsdp",),
    "expert": ("expert",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "ffn": ("tensor",),
    "expert_ffn": ("tensor", "fsdp"),
    "vocab": ("tensor",),
}

# Letter of an einsum equation -> dim name; other letters are never split.
LETTERS = {"B": "batch", "H": "heads", "G": "kv_heads", "F": "ffn", "V": "vocab"}


def make_mesh(cfg: MeshConfig, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh | None:
    """The mesh of a run: over the first devices; in a run of several processes over all; None for one.

    Args:
      cfg: devices along each axis.
      devices: others than this machine's, to compile for; then one of them is a mesh too.

    Raises:
      UsageError: there are fewer devices, some would idle in a run of several processes, an axis of -1
        would leave some over, or a row of the batch would be split over processes.
    """
    found = jax.devices() if devices is None else list(devices)
    num_devices = len(found)
    sizes = _infer({axis: getattr(cfg, axis) for axis in AXES}, num_devices)
    needed = math.prod(sizes.values())
    if needed > num_devices:
        raise UsageError(
            f"mesh ({_show(sizes)}) needs {needed} devices, {num_devices} are there; choose a smaller mesh, "
            f"or on CPU set XLA_FLAGS=--xla_force_host_platform_device_count={needed}"
        )
    if needed < num_devices and jax.process_count() > 1:
        raise UsageError(
            f"mesh ({_show(sizes)}) takes {needed} of {num_devices} devices, but in a run of several "
            "processes all of them take part; grow mesh.data, or set it to -1, which takes what is left"
        )
    if needed == 1 and devices is None:
        return None
    mesh = jax.make_mesh(tuple(sizes.values()), AXES, devices=found[:needed])
    check_rows(np.vectorize(lambda device: device.process_index)(mesh.devices))
    return mesh


def _infer(sizes: dict[str, int], num_devices: int) -> dict[str, int]:
    """The sizes with -1 replaced by what the other axes leave."""
    known = {axis: size for axis, size in sizes.items() if size != -1}
    product = math.prod(known.values())
    left = max(num_devices // product, 1)
    if len(known) < len(sizes) and product <= num_devices and num_devices % product:
        (axis,) = sizes.keys() - known.keys()
        raise UsageError(
            f"mesh.{axis}=-1 takes what the other axes leave, but {num_devices} devices do not split over "
            f"{_show(known)}, which is {product}; choose sizes whose product divides {num_devices}"
        )
    return {axis: left if size == -1 else size for axis, size in sizes.items()}


def _show(sizes: dict[str, int]) -> str:
    return ", ".join(f"{axis}={size}" for axis, size in sizes.items())


def check_rows(process: np.ndarray) -> None:
    """Refuse a mesh that splits a row of the batch over processes: each feeds the rows of its own devices.

    Args:
      process: the process of every device, in the shape of the mesh.
    """
    tensor = process.shape[-1]
    process_RT = process.reshape(-1, tensor)
    if (process_RT != process_RT[:, :1]).any():
        own = process.size // len(np.unique(process))
        raise UsageError(
            f"mesh.tensor={tensor} reaches over processes of {own} devices each, but a row of the batch must "
            f"stay within one; choose a mesh.tensor that divides {own}, and use mesh.fsdp or mesh.expert"
        )


def _mesh(mesh=None):
    """The mesh to lay arrays out on; None inside `jax.pmap` or a shard_map, where each device has its own."""
    mesh = jax.sharding.get_abstract_mesh() if mesh is None else mesh
    return None if mesh.empty or mesh.are_all_axes_manual else mesh


def _spec(names, mesh):
    def axes(name):
        present = tuple(a for a in RULES.get(name, ()) if a in mesh.axis_names)
        return present if len(present) > 1 else (present[0] if present else None)

    return P(*(axes(name) for name in names))


def stored(names, mesh=None) -> P | None:
    """Where a parameter with these dim names is kept."""
    mesh = _mesh(mesh)
    return None if mesh is None else _spec(names, mesh)


def out(letters: str) -> P | None:
    """Layout of an activation by its letters, for `out_sharding=`; None without a mesh."""
    mesh = _mesh()
    return None if mesh is None else _spec([LETTERS.get(letter) for letter in letters], mesh)


def gather(w):
    """A stored parameter in the layout in which a layer uses it: whole along its embed dim."""
    if _mesh() is None:
        return w
    return jax.reshard(w, P(*(None if axes == "fsdp" else axes for axes in jax.typeof(w).sharding.spec)))


def whole(w):
    """A stored parameter on every device, for lookups by index."""
    return w if _mesh() is None else jax.reshard(w, P(*(None,) * w.ndim))


def place_rows(tree, mesh):
    """Host arrays [B, ...] of this process as global arrays whose rows are split over the mesh."""
    if mesh is None:
        return jax.tree.map(jax.numpy.asarray, tree)
    where = jax.sharding.NamedSharding(mesh, _spec(("batch",), mesh))
    count = jax.process_count()

    def place(x):
        return jax.make_array_from_process_local_data(where, x, (x.shape[0] * count, *x.shape[1:]))

    return jax.tree.map(place, tree)
