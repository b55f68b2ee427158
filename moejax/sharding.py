"""From the name of a dim to the axes of a mesh: the one table of layouts.

Model code names dims; this module knows where they live. Under a mesh (`jax.set_mesh`, explicit axes)
the functions give PartitionSpecs, without one they give None, and the same code runs on one device.
"""

import jax
from jax.sharding import PartitionSpec as P

from moejax.config import MeshConfig
from moejax.errors import UsageError

AXES = ("data", "fsdp", "expert", "tensor")

# Dim name -> mesh axes. "embed" is the width of a stored parameter; it is gathered before use.
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp", "expert"),
    "embed": ("fsdp",),
    "expert": ("expert",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "ffn": ("tensor",),
    "vocab": ("tensor",),
}

# Letter of an einsum equation -> dim name; other letters are never split.
LETTERS = {"B": "batch", "H": "heads", "G": "kv_heads", "F": "ffn", "V": "vocab"}


def make_mesh(cfg: MeshConfig) -> jax.sharding.Mesh | None:
    """The mesh of a run over all devices; None when one device does everything."""
    sizes = {axis: getattr(cfg, axis) for axis in AXES}
    num_devices = jax.device_count()
    fixed = 1
    for size in sizes.values():
        fixed *= max(size, 1)
    for axis, size in sizes.items():
        if size == -1:
            sizes[axis] = max(num_devices // fixed, 1)
            fixed *= sizes[axis]
    if fixed > num_devices or (fixed != num_devices and jax.process_count() > 1):
        shape = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
        raise UsageError(
            f"mesh ({shape}) needs {fixed} devices, {num_devices} are there; choose a smaller mesh, or on CPU set "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={fixed}"
        )
    if fixed == 1:
        return None
    return jax.make_mesh(tuple(sizes.values()), AXES, devices=jax.devices()[:fixed])


def _mesh(mesh=None):
    mesh = jax.sharding.get_abstract_mesh() if mesh is None else mesh
    return None if mesh.empty else mesh


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


def row_axes() -> tuple[str, ...]:
    """Mesh axes over which the rows of a batch are split."""
    mesh = _mesh()
    return () if mesh is None else tuple(a for a in RULES["batch"] if a in mesh.axis_names)


def place_rows(tree, mesh):
    """Host arrays [B, ...] of this process as global arrays whose rows are split over the mesh."""
    if mesh is None:
        return jax.tree.map(jax.numpy.asarray, tree)
    where = jax.sharding.NamedSharding(mesh, _spec(("batch",), mesh))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(where, x), tree)
