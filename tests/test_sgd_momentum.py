"""SGD's momentum buffer beside torch's, where momentum comes late, and what is not finite or a zero's sign."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_port as optim

torch = pytest.importorskip("torch")

VALUES = np.array([0.0, -0.0, 1.5, -2.0, np.inf, np.nan, -0.0, 0.0], np.float32)
MOMENTA = (0.0, 0.9, 0.0, 0.0, 0.5)  # the first buffer at the second step, kept through the third and fourth


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("jitted", [False, True])
def test_buffers_while_momentum_is_0(nesterov: bool, jitted: bool) -> None:
    """Bits, NaN and the signs of zeros too: while momentum is 0 torch does not look at the buffer."""
    p = torch.nn.Parameter(torch.ones(len(VALUES)))
    theirs = torch.optim.SGD([p], lr=0.5, momentum=0.9, nesterov=nesterov, foreach=False)
    ours = optim.sgd(lr=0.5, momentum=0.9, nesterov=nesterov)
    params = jnp.ones(len(VALUES))
    state, step = ours.init(params), jax.jit(ours.step) if jitted else ours.step
    for number, momentum in enumerate(MOMENTA):
        grad = np.roll(VALUES, number)
        p.grad, theirs.param_groups[0]["momentum"] = torch.from_numpy(grad.copy()), momentum
        theirs.step()
        params, state = step(jnp.asarray(grad), optim.set_hyper(state, momentum=momentum), params)
        assert same_bits(params, p.detach())
        buffer = theirs.state[p].get("momentum_buffer")
        assert (buffer is None) == (number == 0)
        if buffer is not None:
            assert same_bits(state.slots.momentum_buffer, buffer), number


def same_bits(x: jax.Array, tensor: Any) -> bool:
    """Every bit, but that a NaN is any NaN."""
    one, other = np.asarray(x), tensor.numpy()
    known = ~np.isnan(other)
    return np.array_equal(np.isnan(one), ~known) and one[known].tobytes() == other[known].tobytes()
