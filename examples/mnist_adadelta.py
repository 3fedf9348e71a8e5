"""PyTorch's MNIST example: Adadelta and StepLR. The pictures are scikit-learn's digits, 8x8."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import jaxopt_port as optim

EPOCHS, BATCH = 4, 64


class Network(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.relu(nn.Conv(16, (3, 3))(x))
        x = nn.relu(nn.Conv(32, (3, 3))(x))
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.Dropout(0.25, deterministic=not train)(x)
        x = nn.relu(nn.Dense(64)(x.reshape(len(x), -1)))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(10)(x)


network = Network()
pictures, digits = load_digits(return_X_y=True)
images, labels = jnp.asarray(pictures.reshape(-1, 8, 8, 1) / 16, jnp.float32), jnp.asarray(digits)
train, test = slice(0, 1500), slice(1500, None)

params = network.init(jax.random.key(0), images[:1], False)
optimizer = optim.adadelta(lr=1.0)
scheduler = optim.lr_scheduler.step_lr(step_size=1, gamma=0.7)
sched, state = scheduler.init(optimizer.init(params))


def loss_fn(params, x, y, key):
    logits = network.apply(params, x, True, rngs={"dropout": key})
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, y).mean()


@jax.jit
def train_step(params, state, x, y, key):
    loss, grads = jax.value_and_grad(loss_fn)(params, x, y, key)
    params, state = optimizer.step(grads, state, params)
    return params, state, loss


@jax.jit
def correct(params, x, y):
    return (network.apply(params, x, False).argmax(1) == y).sum()


losses = []
for epoch in range(EPOCHS):
    order = np.random.default_rng(epoch).permutation(1500)
    running = 0.0
    for i in range(0, 1500 - BATCH + 1, BATCH):
        rows = order[i : i + BATCH]
        key = jax.random.fold_in(jax.random.key(epoch), i)
        params, state, loss = train_step(params, state, images[rows], labels[rows], key)
        running += loss
    sched, state = scheduler.step(sched, state)  # once an epoch: the next one has the new rate
    losses.append(float(running) / (1500 // BATCH))
    share = correct(params, images[test], labels[test]) / len(labels[test])
    print(f"epoch {epoch + 1}: loss {losses[-1]:.3f}, test {share:.1%}, next lr {scheduler.get_last_lr(sched)[0]:.3f}")
