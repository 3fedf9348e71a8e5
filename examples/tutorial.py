"""torch.optim's tutorial in one file: make an optimizer, step it, hand it a closure, train a network on CIFAR-10.

`python tutorial.py FOLDER` reads FOLDER/cifar-10-batches-py. Without it the pictures are scikit-learn's digits.
"""

import pickle
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import jaxopt_port as optim

# construct: torch.optim.SGD(model.parameters(), lr=0.1), with an option for the bias alone
params = {"w": jnp.array([3.0, -2.0]), "bias": jnp.ones(2)}
optimizer = optim.sgd(lr=0.1, momentum=0.9, param_groups=[optim.ParamGroup("bias", lr=0.01)])
state = optimizer.init(params)


def closure(params):
    return ((params["w"] + params["bias"] - 1.0) ** 2).sum()


# zero_grad, backward, step: a gradient is a value here, and there is nothing to clear
loss, grads = jax.value_and_grad(closure)(params)
params, state = optimizer.step(grads, state, params)
print(f"loss {loss:.2f}, then {closure(params):.2f}")

# step(closure): L-BFGS and CG evaluate the loss as often as they need to
for optimizer in (optim.lbfgs(line_search_fn="strong_wolfe"), optim.nonlinear_cg(), optim.adadelta()):
    loss, new, state = optimizer.step_closure(closure, optimizer.init(params), params)
    print(f"{str(optimizer).partition('(')[0]}: {loss:.2f}, then {closure(new):.2f}")

if len(sys.argv) > 1:  # 50,000 pictures as torchvision unpacks them
    batches = [pickle.loads(file.read_bytes(), encoding="bytes") for file in Path(sys.argv[1]).glob("*/data_batch_*")]
    images = np.concatenate([batch[b"data"] for batch in batches]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1) / 255
    labels = np.concatenate([batch[b"labels"] for batch in batches])
else:
    images, labels = (each[:200] for each in load_digits(return_X_y=True))
    images = (images.reshape(-1, 8, 8, 1) / 16).repeat(4, 1).repeat(4, 2).repeat(3, 3)
convolutions = [(nn.Conv(n, (5, 5)), lambda x: nn.max_pool(x, (2, 2), (2, 2))) for n in (32, 32, 64)]
network = nn.Sequential([*sum(convolutions, ()), jnp.ravel, nn.Dense(64), nn.Dense(10)])  # of one picture
params = network.init(jax.random.key(0), jnp.zeros((32, 32, 3)))
optimizer = optim.sgd(lr=0.01)
state = optimizer.init(params)


@jax.jit
def train_step(params, state, image, label):
    def loss_fn(params):
        return optax.losses.softmax_cross_entropy_with_integer_labels(network.apply(params, image), label)

    loss, grads = jax.value_and_grad(loss_fn)(params)
    params, state = optimizer.step(grads, state, params)
    return params, state, loss


losses = []
for epoch in range(3):  # 20 in the tutorial
    running = 0.0
    for i in np.random.default_rng(epoch).permutation(len(labels)):
        params, state, loss = train_step(params, state, jnp.asarray(images[i], jnp.float32), labels[i])
        running += loss
    losses.append(float(running) / len(labels))
    print(f"epoch {epoch + 1}: loss {losses[-1]:.3f}")
