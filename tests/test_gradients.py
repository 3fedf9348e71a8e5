"""zero_grad and accumulate_grad against what torch's zero_grad and backward do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.sparse import BCOO

import jaxopt_port as optim
from tests.helpers import assert_same_bits, make_grads, make_params, to_sparse

PARAMS = make_params("adam")


def loss(params, x):
    """Of both parameters for even x, of the kernel alone for odd ones."""
    kernel = (params["kernel"] ** 2 * x).sum()
    return kernel + (params["bias"] * x).sum() if x % 2 == 0 else kernel


def backward(params, x):
    """jax.grad, with None for the parameter that took no part, as torch has it."""
    grads = jax.grad(loss)(params, x)
    return grads if x % 2 == 0 else {**grads, "bias": None}


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("micro_batches", [(2, 4, 3), (1, 3), (1, 2), (2, 1)])
def test_accumulation_as_in_torch(set_to_none, micro_batches):
    torch = pytest.importorskip("torch")
    theirs = {key: torch.nn.Parameter(torch.from_numpy(np.array(p))) for key, p in PARAMS.items()}
    optimizer = torch.optim.SGD(theirs.values())
    grads = optim.zero_grad(PARAMS)
    for _ in range(2):  # the second time there is something to zero
        grads = optim.zero_grad(grads, set_to_none=set_to_none)
        optimizer.zero_grad(set_to_none=set_to_none)
        for x in micro_batches:
            grads = optim.accumulate_grad(grads, backward(PARAMS, x))
            loss(theirs, x).backward()
    assert {key: g is None for key, g in grads.items()} == {key: p.grad is None for key, p in theirs.items()}
    for key, g in grads.items():
        if g is not None:
            np.testing.assert_allclose(g, theirs[key].grad.numpy(), 1e-6)


def test_zero_grad():
    grads = {"a": jnp.ones((2, 1), jnp.bfloat16), "b": (None, jnp.ones(3))}
    assert optim.zero_grad(grads) == {"a": None, "b": (None, None)}
    expected = {"a": jnp.zeros((2, 1), jnp.bfloat16), "b": (None, jnp.zeros(3))}
    assert_same_bits(optim.zero_grad(grads, set_to_none=False), expected)


def test_accumulate_grad_from_nothing():
    grads = make_grads("adam", 0)
    assert optim.accumulate_grad(None, grads) is grads
    assert_same_bits(optim.accumulate_grad(optim.zero_grad(grads), grads), grads)
    assert_same_bits(optim.accumulate_grad(grads, optim.zero_grad(grads)), grads)
    assert optim.accumulate_grad({"a": None}, {"a": None}) == {"a": None}


def test_accumulate_grad_refuses_another_shape():
    with pytest.raises(ValueError, match=r"a gradient float32\[3\] cannot be added to one float32\[1\]"):
        optim.accumulate_grad({"a": jnp.ones(1)}, {"a": jnp.ones(3)})
    with pytest.raises(ValueError, match="key"):
        optim.accumulate_grad({"a": jnp.ones(1)}, {"b": jnp.ones(1)})


def test_sparse_gradients():
    dense = make_grads("adam", 0)["kernel"]
    one, two = to_sparse(dense), BCOO((dense[1:2], jnp.array([[1]])), shape=dense.shape)
    assert optim.zero_grad({"a": one}) == {"a": None}
    zero = optim.zero_grad(one, set_to_none=False)
    assert jax.tree.structure(zero) == jax.tree.structure(one)
    np.testing.assert_array_equal(zero.todense(), jnp.zeros_like(dense))
    for first, second in ((one, two), (one, one), (one, zero), (zero, one)):
        total = jax.jit(optim.accumulate_grad)({"a": first}, {"a": second})["a"]
        assert isinstance(total, BCOO)
        np.testing.assert_allclose(total.todense(), first.todense() + second.todense(), 1e-6)
    assert optim.accumulate_grad({"a": None}, {"a": one})["a"] is one
