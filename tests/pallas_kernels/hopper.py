"""A Hopper GPU that is not here: runs Mosaic-GPU kernels on CPU, as asynchronously as the chip may.

jax's own interpreter of these kernels does products and copies at once. Here they are as late as they can
be, and a copy spoils its destination when it is issued, so that a missing wait changes the result or raises:

- a copy into shared memory leaves NaN there until some warp group waits for the copy's barrier;
- a product reads shared memory when its warp group waits for it; reading its result before that raises;
- a copy to the main memory reads shared memory when its warp group waits for it;
- what was stored to shared memory cannot be read by products and copies before `commit_smem`;
- a barrier that runs two phases ahead of a waiting warp group raises, and so does a wait that never ends.

Copies beyond an array read zeros and write nothing, as the chip's do.
"""

import contextlib
import dataclasses
import functools
import itertools
import threading

import jax
import numpy as np
import pytest
from jax._src.pallas.mosaic_gpu import core
from jax._src.state import types
from jax.experimental.pallas import mosaic_gpu as plgpu

from tests.pallas_kernels.hopper_memory import Barrier, Buffer, View, unset

real_kernel = plgpu.kernel


@contextlib.contextmanager
def mosaic_kernels():
    """Run kernels made by `plgpu.kernel` here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plgpu, "kernel", kernel)
        yield


def kernel(body, *, out_type, **settings):
    """What stands for `plgpu.kernel`."""

    def call(*operands):
        results = jax.tree.leaves(out_type)
        traced = jax.make_jaxpr(real_kernel(body, out_type=out_type, **settings))(*map(jax.typeof, operands))
        (launch,) = _find(traced.jaxpr, "mpmd_map")
        run = functools.partial(_run, launch.params["jaxprs"][0], launch.params["meshes"][0], results)
        shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in results]
        found = jax.pure_callback(run, shapes, *operands, vmap_method="sequential")
        return jax.tree.unflatten(jax.tree.structure(out_type), found)

    return call


# what kernels compute most, and jax would compile for every shape and type
ELEMENTWISE = {
    "exp2": np.exp2,
    "log2": np.log2,
    "neg": np.negative,
    "not": np.invert,
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "max": np.maximum,
    "min": np.minimum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "convert_element_type": np.asarray,  # the type comes from the result
    "select_n": lambda which, no, yes: np.where(which, yes, no),
}


def _broadcast(x, *, shape, broadcast_dimensions, **_):
    """The words of `lax.broadcast_in_dim`."""
    x = np.asarray(x)
    kept = dict(zip(broadcast_dimensions, x.shape, strict=True))
    return np.broadcast_to(x.reshape([kept.get(dim, 1) for dim in range(len(shape))]), shape)


def _iota(*, shape, dimension, **_):
    return _broadcast(np.arange(shape[dimension]), shape=shape, broadcast_dimensions=(dimension,))


WHOLE = {
    "broadcast_in_dim": _broadcast,
    "iota": _iota,
    "reduce_max": lambda x, *, axes, **_: np.max(x, axis=axes),
    "reduce_sum": lambda x, *, axes, **_: np.sum(x, axis=axes),
}


def _find(jaxpr, name: str) -> list:
    found = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == name]
    inner = [eqn.params["call"].jaxpr for eqn in jaxpr.eqns if eqn.primitive.name == "custom_vmap_call"]
    return found + [eqn for sub in inner for eqn in _find(sub, name)]


def _run(jaxpr, mesh, results, *operands):
    outs = [unset(x.shape, x.dtype) for x in results]
    refs = [View(Buffer(np.array(x)), x.shape) for x in (*operands, *outs)]
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    for place in itertools.product(*map(range, mesh.grid)):
        Block(mesh, dict(zip(mesh.grid_names, place, strict=True))).run(jaxpr, refs)
    return [ref.buffer.data for ref in refs[len(operands) :]]


class Block:
    """A block of threads: its warp groups, what they share, and where it is in the grid."""

    def __init__(self, mesh, place: dict):
        self.mesh, self.place = mesh, place
        self.changed, self.failed, self.shared = threading.Condition(), None, {}

    def run(self, jaxpr, refs):
        groups = [WarpGroup(self, who) for who in range(self.mesh.num_threads or 1)]
        threads = [threading.Thread(target=self._work, args=(group, jaxpr, refs)) for group in groups]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.failed:
            raise self.failed

    def _work(self, group, jaxpr, refs):
        try:
            group.interpret(jaxpr, refs)
            assert not group.products and not group.copies, "a warp group ends before what it has begun"
        except BaseException as error:  # raised again where the block was started
            with self.changed:
                self.failed = self.failed or error
                self.changed.notify_all()

    def allocate(self, key, make):
        """What all warp groups share, made by the first that comes."""
        with self.changed:
            if key not in self.shared:
                self.shared[key] = make()
            return self.shared[key]


@dataclasses.dataclass
class Product:
    """A product that has been issued: sum += left @ right."""

    total: Buffer
    left: object
    right: View

    def finish(self):
        left = self.left.read() if isinstance(self.left, View) else self.left
        wide = lambda x: np.asarray(x, np.float32)
        self.total.data = self.total.data + wide(left) @ wide(self.right.read())


class WarpGroup:
    """One of a block's threads, in the words of Pallas."""

    def __init__(self, block: Block, who: int):
        self.block, self.who = block, who
        self.products, self.copies, self.visits = [], [], {}

    def interpret(self, jaxpr, args, consts=()):
        env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
        look = lambda x: x.val if hasattr(x, "val") else env[x]
        for eqn in jaxpr.eqns:
            outs = self._step(eqn, [look(x) for x in eqn.invars])
            outs = outs if eqn.primitive.multiple_results else [outs]
            env.update(zip(eqn.outvars, outs, strict=True))
        return [look(x) for x in jaxpr.outvars]

    def _step(self, eqn, values):
        special = getattr(self, "_" + eqn.primitive.name.removesuffix("_p"), None)
        if special:
            return special(eqn.params, eqn, *values)
        assert not any(isinstance(value, View) for value in values), eqn.primitive
        name, dtype = eqn.primitive.name, getattr(eqn.outvars[0].aval, "dtype", None)
        with np.errstate(all="ignore"):
            if name in ELEMENTWISE:
                return np.asarray(ELEMENTWISE[name](*values), dtype)
            if name in WHOLE:
                return np.asarray(WHOLE[name](*values, **eqn.params), dtype)
        return eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(eqn.params))

    # control

    def _jit(self, params, eqn, *values):
        return self.interpret(params["jaxpr"].jaxpr, values, params["jaxpr"].consts)

    def _cond(self, params, eqn, which, *values):
        branch = params["branches"][int(np.clip(int(which), 0, len(params["branches"]) - 1))]
        return self.interpret(branch.jaxpr, values, branch.consts)

    def _while(self, params, eqn, *values):
        n, m = params["cond_nconsts"], params["body_nconsts"]
        check, body = params["cond_jaxpr"], params["body_jaxpr"]
        of_check, of_body, carry = values[:n], values[n : n + m], values[n + m :]
        while bool(self.interpret(check.jaxpr, [*of_check, *carry])[0]):
            carry = self.interpret(body.jaxpr, [*of_body, *carry])
        return list(carry)

    def _scan(self, params, eqn, *values):
        n, m = params["num_consts"], params["num_carry"]
        consts, carry = values[:n], values[n : n + m]
        assert len(values) == n + m
        for _ in range(params["length"]):
            carry = self.interpret(params["jaxpr"].jaxpr, [*consts, *carry])
        return list(carry)

    def _axis_index(self, params, eqn):
        name = params["axis_name"]
        return np.int32(self.who if name == self.block.mesh.thread_name else self.block.place[name])

    # memory

    def _run_scoped(self, params, eqn, *consts):
        visit = self.visits[id(eqn)] = self.visits.get(id(eqn), 0) + 1
        refs = []
        for number, (var, transforms) in enumerate(
            zip(params["jaxpr"].invars, params["ref_transforms"], strict=True)
        ):
            make = functools.partial(self._new, var.aval, transforms)
            shared = params["collective_axes"]
            refs.append(self.block.allocate((id(eqn), visit, number), make) if shared else make())
        outs = self.interpret(params["jaxpr"], refs, consts)
        assert not any(product.total is ref.buffer for product in self.products for ref in refs)
        return outs

    def _new(self, aval, transforms) -> View:
        inner = types.TransformedRef(aval.inner_aval, transforms).type if transforms else aval.inner_aval
        if isinstance(inner.dtype, core.BarrierType):
            return View(
                [Barrier(self.block, inner.dtype.num_arrivals) for _ in range(*inner.shape)], inner.shape
            )
        zero = aval.memory_space == core.MemorySpace.REGS
        data = np.zeros(inner.shape, inner.dtype) if zero else unset(inner.shape, inner.dtype)
        return View(Buffer(data), inner.shape)

    def _run_state(self, params, eqn, *values):
        make = lambda value: View(Buffer(np.array(value)), np.shape(value))
        refs = [value if isinstance(value, View) else make(value) for value in values]
        self.interpret(params["jaxpr"], refs)
        self._finish(0)
        return [v if isinstance(v, View) else r.read() for v, r in zip(values, refs, strict=True)]

    def _get(self, params, eqn, ref, *leaves):
        return ref.through(jax.tree.unflatten(params["tree"], leaves)).read()

    _load = _get

    def _swap(self, params, eqn, ref, value, *leaves):
        view = ref.through(jax.tree.unflatten(params["tree"], leaves))
        before = view.read()
        view.write(value)
        view.buffer.uncommitted_by.add(self.who)
        return before

    def _layout_cast(self, params, eqn, value):
        return value

    def _optimization_barrier(self, params, eqn, *values):
        return list(values)

    # what is asynchronous

    def _committed(self, view):
        assert self.who not in view.buffer.uncommitted_by, "what was stored was not committed"

    def _commit_smem(self, params, eqn):
        for views in [*self.block.shared.values()]:
            if isinstance(views.buffer, Buffer):
                views.buffer.uncommitted_by.discard(self.who)
        return []

    def _set_max_registers(self, params, eqn, *_):
        return []

    _commit_group = _set_max_registers

    def _wgmma_ref(self, params, eqn, total, left, right, *leaves):
        trees = [params[f"{name}_transforms_tree"] or jax.tree.structure(()) for name in ("acc", "a", "b")]
        of_total, of_left, of_right = jax.tree.unflatten(jax.tree_util.treedef_tuple(trees), leaves)
        assert not of_total
        left = left.through(of_left) if isinstance(left, View) else left
        right = right.through(of_right)
        for view in (left, right):
            if isinstance(view, View):
                self._committed(view)
        self.products.append(Product(total.buffer, left, right))
        return []

    def _finish(self, left_over: int):
        while len(self.products) > left_over:
            self.products.pop(0).finish()

    def _wgmma_wait(self, params, eqn, left_over):
        self._finish(int(left_over))
        return []

    def _wgmma_accumulator_deref(self, params, eqn, total):
        if params["wait_n"] is not None:
            self._finish(params["wait_n"])
        in_flight = any(product.total is total.buffer for product in self.products)
        assert not in_flight, "the sum of a product that has not been waited for"
        return total.read()

    def _barrier_of(self, params, barrier, leaves, name="transforms_treedef") -> Barrier:
        return barrier.through(jax.tree.unflatten(params[name], leaves)).barrier()

    def _barrier_arrive(self, params, eqn, barrier, *leaves):
        self._barrier_of(params, barrier, leaves).arrive()
        return []

    def _barrier_wait(self, params, eqn, barrier, *leaves):
        self._barrier_of(params, barrier, leaves).wait(self.who)
        return []

    def _copy_gmem_to_smem(self, params, eqn, source, target, barrier, *leaves):
        trees = [params[f"{name}_transforms_treedef"] for name in ("src", "dst", "barrier")]
        of_source, of_target, of_barrier = jax.tree.unflatten(jax.tree_util.treedef_tuple(trees), leaves)
        source, target = source.through(of_source), target.through(of_target)
        target.write(unset(target.shape, target.buffer.data.dtype))
        barrier = barrier.through(of_barrier).barrier()
        with self.block.changed:
            barrier.copies.append(lambda: target.write(source.read(beyond=True)))
            self.block.changed.notify_all()
        return []

    def _copy_smem_to_gmem(self, params, eqn, source, target, *leaves):
        trees = [params[f"{name}_transforms_treedef"] for name in ("src", "dst")]
        of_source, of_target = jax.tree.unflatten(jax.tree_util.treedef_tuple(trees), leaves)
        source, target = source.through(of_source), target.through(of_target)
        self._committed(source)
        self.copies.append(lambda: target.write(source.read(), beyond=True))
        return []

    def _wait_smem_to_gmem(self, params, eqn, left_over):
        while len(self.copies) > int(left_over):
            self.copies.pop(0)()
        return []
