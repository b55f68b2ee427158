"""The nnx module in plain nnx models: the documentation's code runs, and a mesh changes nothing."""

import pathlib
import re

import jax
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P

from moejax.dispatch.local import Local
from moejax.ffn.moe import Moe
from moejax.interop.flax import MoE
from moejax.routers.score.linear import Linear
from moejax.routers.select.top_k import TopK
from tests.contracts import tiny

PAGE = pathlib.Path(__file__).resolve().parents[3] / "docs" / "flax.md"
MOE = Moe(4, 8, Linear(), TopK(2), Local())


def test_the_documented_model_learns():
    """Nats per byte of English and Python: 5.5 is uniform, 3.2 the frequencies of bytes alone."""
    told = {}
    for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(code, str(PAGE), "exec"), told)
    losses = np.array(told["losses"]).reshape(3, -1).mean(axis=1)
    assert losses[0] > losses[1] > losses[2]
    assert losses[2] < 2.9
    assert told["y"].shape == told["x"].shape and told["routing"].expert_BTK.shape == (2, 8, 2)


def test_a_mesh_changes_nothing():
    x_BTD = np.random.default_rng(0).standard_normal((4, 3, 16)).astype(np.float32)
    run = nnx.jit(lambda module, x: module(x))
    want_BTD = run(MoE(16, MOE, rngs=nnx.Rngs(0)), x_BTD)
    with tiny.on_mesh(expert=2, tensor=2) as mesh:
        module = nnx.jit(lambda: MoE(16, MOE, rngs=nnx.Rngs(0)))()
        up = module.params["experts"]["up"]
        assert up[...].sharding.spec == up.out_sharding == P("expert", "fsdp", "tensor")
        rows = jax.NamedSharding(mesh, P(("data", "fsdp", "expert")))
        got_BTD = run(module, jax.device_put(x_BTD, rows))
    tiny.close(got_BTD, want_BTD, 1e-5)


def test_parameters_are_those_of_the_model():
    """One state tree, optimisers see every matrix, and one module's copy is another module."""
    module = MoE(16, MOE, rngs=nnx.Rngs(0))
    paths = {"/".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(module, nnx.Param))}
    assert paths == {"params/score/w", *(f"params/experts/{name}" for name in ("gate", "up", "down"))}
    x_ND = np.ones((3, 16), np.float32)
    clone = nnx.clone(module)
    np.testing.assert_array_equal(clone(x_ND), module(x_ND))
    up = clone.params["experts"]["up"]
    up[...] = 2 * up[...]
    assert not np.array_equal(clone(x_ND), module(x_ND))
