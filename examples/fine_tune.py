"""Fine-tuning: the head alone first, then the backbone too, at a tenth of the rate. In linen, then in nnx."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

import jaxopt_port as optim

x = jax.random.normal(jax.random.key(0), (64, 8))
y = jnp.sin(x[:, :1] * 2) + x[:, 1:2]
frozen = optim.ParamGroup("backbone/.*", frozen=True)  # requires_grad_(False)
unfrozen = optim.ParamGroup("backbone/.*", lr=1e-3)
losses = []


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(1, name="head")(jnp.tanh(nn.Dense(32, name="backbone")(x)))


def train_linen(optimizer, state, params, steps):
    @jax.jit  # made anew after add_param_group: the optimizer is another
    def train_step(params, state):
        loss, grads = jax.value_and_grad(lambda p: ((Linen().apply({"params": p}, x) - y) ** 2).mean())(params)
        params, state = optimizer.step(grads, state, params)
        return params, state, loss

    for _ in range(steps):
        params, state, loss = train_step(params, state)
        losses.append(float(loss))
    return params, state


params = Linen().init(jax.random.key(1), x)["params"]  # pre-trained ones, in earnest
optimizer = optim.adam(lr=1e-2, param_groups=[frozen])
params, state = train_linen(optimizer, optimizer.init(params), params, 30)
print(f"linen: loss {losses[0]:.3f}, head alone {losses[-1]:.3f}", end="")
optimizer, state = optim.add_param_group(optimizer, state, params, unfrozen)
params, state = train_linen(optimizer, state, params, 60)
print(f", with the backbone {losses[-1]:.3f}")


class Model(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.backbone, self.head = nnx.Linear(8, 32, rngs=rngs), nnx.Linear(32, 1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(jnp.tanh(self.backbone(x)))


@nnx.jit
def train_step(model, optimizer):
    loss, grads = nnx.value_and_grad(lambda model: ((model(x) - y) ** 2).mean())(model)
    optimizer.update(model, grads)
    return loss


model = Model(nnx.Rngs(1))
tx = optim.adam(lr=1e-2, param_groups=[frozen])
optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
nnx_losses = [float(train_step(model, optimizer)) for _ in range(30)]
print(f"nnx: loss {nnx_losses[0]:.3f}, head alone {nnx_losses[-1]:.3f}", end="")
params, state = nnx.as_pure(nnx.state(model, nnx.Param)), nnx.as_pure(optimizer.opt_state)
tx, state = optim.add_param_group(tx, state, params, unfrozen)
optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)  # a new one, whose variables get the state so far
variables = jax.tree.leaves(optimizer.opt_state, is_leaf=lambda x: isinstance(x, nnx.Variable))
for variable, value in zip(variables, jax.tree.leaves(state), strict=True):
    variable.set_value(value)
nnx_losses += [float(train_step(model, optimizer)) for _ in range(60)]
print(f", with the backbone {nnx_losses[-1]:.3f}")
