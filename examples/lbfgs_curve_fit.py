"""PyTorch's time sequence example: L-BFGS with strong Wolfe fits sine waves with an LSTM, which then goes on alone."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_port as optim

STEPS = 4


class Sequence(nn.Module):
    """The next value of each wave, at every time."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(1)(nn.RNN(nn.OptimizedLSTMCell(8))(x[..., None]))[..., 0]


network = Sequence()
phases = np.random.default_rng(0).uniform(0, 2 * np.pi, (8, 1))
waves = jnp.asarray(np.sin(phases + np.arange(41) / 4), jnp.float32)
params = network.init(jax.random.key(0), waves)


def closure(params, x, y):  # no zero_grad, no backward: the optimizer differentiates it, as often as it needs to
    return ((network.apply(params, x) - y) ** 2).mean()


optimizer = optim.lbfgs(lr=0.8, max_iter=10, line_search_fn="strong_wolfe")
state = optimizer.init(params)


@jax.jit
def train_step(params, state, x, y):
    return optimizer.step_closure(closure, state, params, x, y)  # the batch is an argument, of any values


losses = []
for step in range(STEPS):
    loss, params, state = train_step(params, state, waves[:, :-1], waves[:, 1:])
    losses.append(float(loss))
    why = optim.Stop(int(state.slots.stop)).name
    print(f"step {step + 1}: loss {losses[-1]:.5f}, {int(state.steps[0]['func_evals'])} evaluations, stopped by {why}")

predict, future = jax.jit(network.apply), waves[:1, 1:]
for _ in range(20):  # its own predictions are its input
    future = jnp.concatenate([future[:, 1:], predict(params, future)[:, -1:]], axis=1)
truth = np.sin(phases[:1] + np.arange(21, 61) / 4)
print(f"20 values ahead the wave is off by {jnp.abs(future - truth).max():.3f}")
