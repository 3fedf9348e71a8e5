"""A training step lowers for TPU, CUDA and CPU with 64-bit types off."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import jaxopt_port as optim
from tests.helpers import MATRICES, RULES, SPARSE, assert_close, make, make_grads, make_params

PLATFORMS = ("tpu", "cuda", "cpu")


class MLP(nn.Module):
    """Two layers; without biases for an optimizer that takes matrices only."""

    use_bias: bool = True

    @nn.compact
    def __call__(self, x):
        return nn.Dense(1, use_bias=self.use_bias)(jnp.tanh(nn.Dense(4, use_bias=self.use_bias)(x)))


def export(step, *args):
    assert not jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue]
    exported = jax.export.export(jax.jit(step), platforms=PLATFORMS)(*args)
    assert exported.platforms == PLATFORMS
    assert [aval.dtype for aval in exported.out_avals] == [
        x.dtype for x in jax.tree.leaves(jax.eval_shape(step, *args))
    ]
    return exported


@pytest.mark.parametrize("name", [n for n in RULES if n != SPARSE])
def test_a_training_step_lowers_for_every_platform(name):
    model = MLP(use_bias=name != MATRICES)
    x, y = jnp.ones((2, 3)), jnp.ones((2, 1))
    params = model.init(jax.random.key(0), x)["params"]
    optimizer = make(name, param_groups=[optim.ParamGroup("Dense_0/.*", lr=0.5)])

    def train_step(params, state, x, y):
        loss, grads = jax.value_and_grad(lambda p: ((model.apply({"params": p}, x) - y) ** 2).mean())(params)
        return loss, *optimizer.step(grads, state, params)

    args = params, optimizer.init(params), x, y
    exported = export(train_step, *args)
    if name == "adam":
        assert_close(exported.call(*args), jax.jit(train_step)(*args))


def test_a_sparse_step_lowers_for_every_platform():
    optimizer = optim.optimizers[SPARSE]()
    params, grads = make_params(SPARSE), make_grads(SPARSE, 0)
    leaves, structure = jax.tree.flatten(grads)

    def step(leaves, state, params):
        return optimizer.step(structure.unflatten(leaves), state, params)

    export(step, leaves, optimizer.init(params), params)
