"""Memory of small programs whose arrays can be added up by hand."""

import jax
import jax.numpy as jnp

from moejax.analysis.memory import compiled_memory, largest_buffers

KIB = 2**10
X = jax.ShapeDtypeStruct((16, 16), jnp.float32)  # 1 KiB


def test_arguments_and_outputs():
    memory = compiled_memory(jax.jit(lambda x: (x @ x, x + 1.0)).lower(X).compile())
    assert (memory.arguments, memory.aliases) == (KIB, 0)
    assert 2 * KIB <= memory.outputs <= 2 * KIB + 64  # and the tuple's pointers
    assert memory.peak == memory.arguments + memory.outputs + memory.temporaries


def test_a_donated_argument_is_counted_once():
    plain = jax.jit(lambda x: x + 1.0).lower(X).compile()
    donated = jax.jit(lambda x: x + 1.0, donate_argnums=0).lower(X).compile()
    assert compiled_memory(plain).peak == 2 * KIB
    assert compiled_memory(donated).aliases == KIB
    assert compiled_memory(donated).peak == KIB


def test_temporaries_raise_the_peak():
    """The outer product of two vectors is 16 KiB that neither goes in nor comes out."""

    def f(v_D):
        outer_DD = v_D[:, None] @ v_D[None, :]
        return jnp.sort(outer_DD, axis=0)[0]

    memory = compiled_memory(jax.jit(f).lower(jax.ShapeDtypeStruct((64,), jnp.float32)).compile())
    assert memory.temporaries >= 16 * KIB
    assert memory.peak >= memory.temporaries + memory.arguments


def test_the_largest_buffers_are_named_by_scope_and_shape():
    def f(x_ND, w_DF):
        with jax.named_scope("ffn"), jax.named_scope("up"):
            h_NF = x_ND @ w_DF
        return jax.lax.scan(lambda c_ND, _: (jnp.tanh(c_ND), None), x_ND, None, length=3)[0], h_NF

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((64, 8), (8, 512))]
    buffers = largest_buffers(jax.jit(f).lower(*shapes).compile(), n=3)
    assert [buffer.bytes for buffer in buffers] == [4 * 64 * 512, 4 * 8 * 512, 4 * 64 * 8]
    assert buffers[0].shape == "f32[64,512]"
    assert "ffn/up" in buffers[0].op_name
    assert (buffers[1].opcode, buffers[1].op_name) == ("parameter", "w_DF")
    assert str(buffers[1]) == "0.0 MiB f32[8,512] parameter w_DF"


def test_updates_in_place_are_not_buffers_of_their_own():
    def f(x_ND):
        return jax.lax.scan(lambda c_ND, _: (jnp.sin(c_ND), c_ND), x_ND, None, length=100)[1]

    buffers = largest_buffers(jax.jit(f).lower(X).compile(), n=100)
    assert (
        sum(buffer.bytes >= 100 * KIB for buffer in buffers) <= 2
    )  # the stack and one copy; not one per step
