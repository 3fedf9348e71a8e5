"""An embedding table with SparseAdam, which steps the rows that a batch has used, and the rest with Adam."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.sparse import BCOO

import jaxopt_port as optim

WORDS, WIDTH, BATCH, LENGTH, STEPS = 1000, 8, 32, 5, 150

rng = np.random.default_rng(0)
score = rng.standard_normal(WORDS)  # what is to be learned: the score of a text is the mean of its words'
params = {
    "embedding": jnp.asarray(rng.standard_normal((WORDS, WIDTH)) / 4, jnp.float32),
    "dense": {"kernel": jnp.ones(WIDTH), "bias": jnp.zeros(())},
}
# two optimizers, each with the other's parameters frozen
sparse = optim.sparse_adam(lr=0.05, param_groups=[optim.ParamGroup("dense/.*", frozen=True)])
dense = optim.adam(lr=0.01, param_groups=[optim.ParamGroup("embedding", frozen=True)])
states = sparse.init(params), dense.init(params)


def train_step(params, states, words, scores):
    def loss_fn(rows, dense):
        return ((rows.mean(1) @ dense["kernel"] + dense["bias"] - scores) ** 2).mean()

    # with respect to the rows that are used, not to the table: nn.Embedding(sparse=True)
    rows = params["embedding"][words]
    loss, (row_grads, dense_grads) = jax.value_and_grad(loss_fn, argnums=(0, 1))(rows, params["dense"])
    table_grad = BCOO((row_grads.reshape(-1, WIDTH), words.reshape(-1, 1)), shape=(WORDS, WIDTH))
    params, first = sparse.step({"embedding": table_grad, "dense": dense_grads}, states[0], params)
    params, second = dense.step({"embedding": None, "dense": dense_grads}, states[1], params)
    return params, (first, second), loss


# donated, so that the table is changed in place and a step costs what its rows cost
train_step = jax.jit(train_step, donate_argnums=(0, 1))
losses = []
for _ in range(STEPS):
    words = rng.zipf(1.5, (BATCH, LENGTH)) % WORDS  # some words are frequent, most are rare
    scores = score[words].mean(1)
    params, states, loss = train_step(params, states, jnp.asarray(words), jnp.asarray(scores, jnp.float32))
    losses.append(float(loss))
print(f"loss {np.mean(losses[:10]):.3f}, after {STEPS} steps {np.mean(losses[-10:]):.3f}")
