"""Muon for the hidden matrices and AdamW for the rest, as its authors advise: biases, first and last layer."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import jaxopt_port as optim

STEPS, BATCH = 60, 100


class Network(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Dense(64, name="first")(x))
        for layer in range(2):
            x = nn.relu(nn.Dense(64, name=f"hidden_{layer}")(x))
        return nn.Dense(10, name="last")(x)


HIDDEN = r"hidden_\d/kernel"
network = Network()
pictures, digits = load_digits(return_X_y=True)
images, labels = jnp.asarray(pictures / 16, jnp.float32), jnp.asarray(digits)
params = network.init(jax.random.key(0), images[:1])["params"]

# two optimizers, each with the other's parameters frozen; a Flax kernel is [in, out], torch's weight [out, in]
rest = optim.ParamGroup(rf"(?!{HIDDEN}).*", frozen=True)
muon = optim.muon(lr=0.02, weight_decay=0.01, weight_dimension_numbers=(0, 1), param_groups=[rest])
no_decay = optim.ParamGroup(".*/bias", weight_decay=0.0)
adamw = optim.adamw(lr=3e-3, param_groups=[no_decay, optim.ParamGroup(HIDDEN, frozen=True)])
states = muon.init(params), adamw.init(params)


@jax.jit
def train_step(params, states, x, y):
    def loss_fn(params):
        logits = network.apply({"params": params}, x)
        return optax.losses.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    loss, grads = jax.value_and_grad(loss_fn)(params)
    params, first = muon.step(grads, states[0], params)
    params, second = adamw.step(grads, states[1], params)
    return params, (first, second), loss


losses = []
for step in range(STEPS):
    rows = np.random.default_rng(step).integers(1500, size=BATCH)
    params, states, loss = train_step(params, states, images[rows], labels[rows])
    losses.append(float(loss))
share = (network.apply({"params": params}, images[1500:]).argmax(1) == labels[1500:]).mean()
print(f"loss {losses[0]:.3f}, after {STEPS} steps {losses[-1]:.3f}, test {share:.1%}")
