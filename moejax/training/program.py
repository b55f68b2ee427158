"""A run turned into compiled functions: mesh, optimizer, and the jitted step on the shapes of the run."""

import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moejax import sharding
from moejax import specs as sp
from moejax.analysis.dry_run import DryRun, dry_run
from moejax.config import Run, require
from moejax.model import forward as model
from moejax.seams import Batch
from moejax.training import optimizer as optim
from moejax.training import state as train_state
from moejax.training import step
from moejax.training.router_meter import RouterMeter

# Of the data layer's batches; others become `Batch.extra`.
COLUMNS = {"token": jnp.int32, "pos": jnp.int32, "seg": jnp.int32, "target": jnp.int32, "weight": jnp.float32}


@dataclasses.dataclass(frozen=True)
class Program:
    """The pure functions of a run, bound to its mesh. Enter `mesh_context()` around their use."""

    run: Run
    mesh: jax.sharding.Mesh | None
    losses: tuple[Any, ...]
    optimizer: Any
    specs: Any

    def mesh_context(self):
        """Makes the run's mesh current."""
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)

    @property
    def flops_per_step(self) -> float:
        """Matmul FLOPs that a step needs: 2 per active parameter and token, and those of mixing, times 3."""
        m, train = self.run.model, self.run.train
        table = 0 if m.tied else m.vocab * m.width  # looking up is no matmul
        blocks = [(block, group.repeat) for group in m.groups for block in group.blocks]
        mixing = sum(repeat * block.attn.mixing_flops(train.seq_len) for block, repeat in blocks)
        per_token = 2 * (sp.count_active(self.specs) - table) + mixing
        return 3.0 * per_token * train.batch_rows * train.seq_len

    @property
    def root_key(self) -> jax.Array:
        """The run's key; parameters and steps have streams of their own."""
        return jax.random.key(self.run.train.seed)

    def init(self) -> train_state.TrainState:
        """The state before the first step."""
        return jax.jit(self._make_state)()

    def abstract_state(self):
        """Shapes, dtypes and shardings of the state, without making it."""
        return jax.tree.map(self._placed, jax.eval_shape(self._make_state))

    def _make_state(self):
        key = jax.random.fold_in(self.root_key, 0)
        return train_state.init(key, self.run.model, self.losses, self.optimizer)

    def _placed(self, shape):
        if self.mesh is None:
            return jax.ShapeDtypeStruct(shape.shape, shape.dtype)
        # a scalar is everywhere
        spec = shape.sharding.spec if shape.sharding else jax.sharding.PartitionSpec()
        where = jax.sharding.NamedSharding(self.mesh, spec)
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=where)

    def place(self, host_batch: dict[str, np.ndarray]) -> Batch:
        """This process's rows as (its part of) a global batch."""
        return sharding.place_rows(as_batch(host_batch), self.mesh)

    def abstract_batch(self) -> Batch:
        """The shapes of a global batch."""
        B, T = self.run.train.batch_rows, self.run.train.seq_len
        batch = as_batch({name: jax.ShapeDtypeStruct((B, T), dtype) for name, dtype in COLUMNS.items()})
        if self.mesh is None:
            return batch
        where = jax.sharding.NamedSharding(self.mesh, sharding.stored(("batch", None), self.mesh))
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), batch)

    def jit_step(self, donate: bool = True):
        """The jitted train step: (state, batch) -> (state, metrics)."""
        train = self.run.train
        one = functools.partial(
            step.train_step,
            m=self.run.model,
            losses=self.losses,
            optimizer=self.optimizer,
            accumulate=train.accumulate,
            spike_factor=train.spike_factor,
        )

        def with_key(state, batch):  # made here, as a mesh to compile for has no device to make it on
            return one(state, batch, jax.random.fold_in(self.root_key, 1))

        return jax.jit(with_key, donate_argnums=0 if donate else ())

    def compile_step(self):
        """The step compiled for the run's shapes; nothing is allocated."""
        return self.jit_step().lower(self.abstract_state(), self.abstract_batch()).compile()


def as_batch(host: dict) -> Batch:
    """The data layer's arrays as a Batch; segment 0 is padding."""
    seg_BT = host["seg"]
    valid_BT = (
        jax.ShapeDtypeStruct(seg_BT.shape, bool) if isinstance(seg_BT, jax.ShapeDtypeStruct) else seg_BT > 0
    )
    extra = {name: value for name, value in host.items() if name not in COLUMNS}
    return Batch(host["token"], host["pos"], seg_BT, valid_BT, host["target"], host["weight"], extra)


def build(run: Run, devices: Sequence[jax.Device] | None = None) -> Program:
    """Check the run against the devices and bind its functions.

    Args:
      run: what is trained.
      devices: others than this machine's, for a program that is only compiled.

    Raises:
      UsageError: the mesh does not fit the devices, the batch or the model, or float64 is turned off.
    """
    m = run.model
    require(
        "float64" not in (m.dtype, m.param_dtype) or jax.config.jax_enable_x64,
        f"model.dtype={m.dtype}, model.param_dtype={m.param_dtype}: JAX computes in float32 instead of "
        "float64; choose float32, or set JAX_ENABLE_X64=1",
    )
    mesh = sharding.make_mesh(run.mesh, devices)
    if mesh is not None:  # axes of -1 are known now, and the run checks itself once more
        run = dataclasses.replace(run, mesh=dataclasses.replace(run.mesh, **mesh.shape))
    specs = model.specs(run.model)
    return Program(
        run=run,
        mesh=mesh,
        losses=(*run.train.losses, RouterMeter()),
        optimizer=optim.of_run(run.train, specs),
        specs=specs,
    )


def price(run: Run) -> DryRun:
    """What one step of the run costs, from the compiled program; nothing is allocated."""
    program = build(run)
    with program.mesh_context():
        compiled = program.compile_step()
        tokens = run.train.batch_rows * run.train.seq_len
        return dry_run(compiled, program.abstract_state().params, tokens, sp.count_active(program.specs))
