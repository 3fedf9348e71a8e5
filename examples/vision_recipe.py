"""torchvision's classification recipe: SGD with momentum, no decay for norms and biases, label smoothing, warm-up and
cosine, an average of the weights (EMA), float16 with a GradScaler. The pictures are scikit-learn's digits."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import jaxopt_port as optim
from jaxopt_port import lr_scheduler, swa_utils

EPOCHS, WARM_UP, BATCH = 4, 1, 100


class Network(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        for width in (16, 32):
            x = nn.Conv(width, (3, 3), strides=2, use_bias=False, dtype=jnp.float16)(x)  # parameters stay float32
            x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        return nn.Dense(10)(x.mean((1, 2)))


network = Network()
pictures, digits = load_digits(return_X_y=True)
images, labels = jnp.asarray(pictures.reshape(-1, 8, 8, 1) / 16, jnp.float32), jnp.asarray(digits)
variables = network.init(jax.random.key(0), images[:1])
params, stats = variables["params"], variables["batch_stats"]

no_decay = optim.ParamGroup(".*/(bias|scale)", weight_decay=0.0)  # --norm-weight-decay 0 --bias-weight-decay 0
optimizer = optim.sgd(lr=0.5, momentum=0.9, weight_decay=1e-4, nesterov=True, param_groups=[no_decay])
warm_up = lr_scheduler.linear_lr(0.01, total_iters=WARM_UP)
cosine = lr_scheduler.cosine_annealing_lr(T_max=EPOCHS - WARM_UP)
scheduler = lr_scheduler.sequential_lr([warm_up, cosine], milestones=[WARM_UP])
sched, state = scheduler.init(optimizer.init(params))
scaler = optim.GradScaler()
scaling = scaler.init()
ema = swa_utils.averaged_model(multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True)
averaged = ema.init(params, stats)


@jax.jit
def train_step(params, stats, state, scaling, averaged, x, y):
    def loss_fn(params):
        variables = {"params": params, "batch_stats": stats}
        logits, new = network.apply(variables, x, train=True, mutable=["batch_stats"])
        smooth = optax.losses.smooth_labels(jax.nn.one_hot(y, 10), 0.1)  # CrossEntropyLoss(label_smoothing=0.1)
        loss = optax.losses.softmax_cross_entropy(logits, smooth).mean()
        return scaler.scale(scaling, loss), (loss, new["batch_stats"])

    grads, (loss, stats) = jax.grad(loss_fn, has_aux=True)(params)
    grads, found_inf = scaler.unscale(scaling, grads)
    grads, _ = optim.clip_grad_norm(grads, 5.0)
    params, state, found_inf = scaler.step(optimizer, scaling, grads, state, params, found_inf)
    scaling = scaler.update(scaling, found_inf)
    return params, stats, state, scaling, ema.update(averaged, params, stats), loss


losses = []
for epoch in range(EPOCHS):
    order = np.random.default_rng(epoch).permutation(1500).reshape(-1, BATCH)
    running = 0.0
    for rows in order:
        batch = images[rows], labels[rows]
        params, stats, state, scaling, averaged, loss = train_step(params, stats, state, scaling, averaged, *batch)
        running += loss
    sched, state = scheduler.step(sched, state)
    losses.append(float(running) / len(order))
    logits = network.apply({"params": averaged.params, "batch_stats": averaged.buffers}, images[1500:])
    share = (logits.argmax(1) == labels[1500:]).mean()
    print(f"epoch {epoch + 1}: loss {losses[-1]:.3f}, test of the average {share:.1%}, {scaler.get_scale(scaling):.0f}")
