"""Where a run starts, and the order in which it takes the examples: a PyTorch script's, or JAX's own."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, PRNGKeyArray

from jaxopt_port.torch_interop import Generator, data_loader_order, init
from train.config import Config
from train.model import KERNEL, Params, layers
from train.step import State
from train.training import Training

Order = Int[np.ndarray, " n"]


def start(config: Config, training: Training, classes: int, params: Params | None = None) -> State:
    """The state before the first step.

    Args:
      config: says by `--init` and `--seed` which parameters. With `--init torch` they are those of
        `torch.manual_seed(seed); model = Network()`, on a CPU with AVX2 in every bit.
      training: what steps them.
      classes: the network's.
      params: other parameters; they are handed on, not copied.
    """
    if params is None:
        params = _draw(config, classes)
    sched, opt_state = training.start_schedule(training.optimizer.init(params))
    return State(params, opt_state, sched, None if training.average is None else training.average.init(params))


def epoch_order(config: Config, number: int, examples: int, classes: int = 10) -> Order:
    """The order in which an epoch takes the examples; a function of the configuration and the epoch's number alone.

    With `--init torch` it is that of a script which seeds, makes the network, and goes through a
    `DataLoader(shuffle=True)` in each epoch; where the run evaluates, through another one after it.

    Args:
      config: the run's.
      number: the epoch's, from 1.
      examples: how many there are.
      classes: the network's.
    """
    if not config.shuffle:
        return np.arange(examples)
    if config.init == "jax":
        return np.random.default_rng((config.seed, number)).permutation(examples)
    generator = Generator(config.seed)
    _torch_params(generator, classes)
    for _ in range(number - 1):
        data_loader_order(generator, examples)
        if config.evaluates:
            generator.random()  # any DataLoader draws a base seed
    return data_loader_order(generator, examples)


def _torch_params(generator: Generator, classes: int) -> Params:
    """In the order in which the tutorial makes its layers, in flax's layouts."""
    params: Params = {}
    for layer in layers(classes):
        if layer.kind == "conv":
            drawn = init.conv(generator, layer.inputs, layer.outputs, (KERNEL, KERNEL))
            kernel = drawn["weight"].transpose(2, 3, 1, 0)
        else:
            drawn = init.linear(generator, layer.inputs, layer.outputs)
            kernel = drawn["weight"].T
        params[layer.name] = {"kernel": kernel, "bias": drawn["bias"]}
    return params


def _draw(config: Config, classes: int) -> Params:
    if config.init == "torch":
        return jax.tree.map(jnp.asarray, _torch_params(Generator(config.seed), classes))
    return _jax_params(jax.random.key(config.seed), classes)


@partial(jax.jit, static_argnums=1)
def _jax_params(key: PRNGKeyArray, classes: int) -> Params:
    """With torch's default distribution: uniform within 1 / sqrt(fan_in) of zero.

    One draw serves all, since XLA takes half a second to compile each.
    """
    shapes: dict[str, dict[str, Any]] = {}
    for layer in layers(classes):
        kernel = (KERNEL, KERNEL) if layer.kind == "conv" else ()
        shapes[layer.name] = {"bias": (layer.outputs,), "kernel": (*kernel, layer.inputs, layer.outputs)}
    sizes = [math.prod(shape) for leaves in shapes.values() for shape in leaves.values()]
    pieces = iter(jnp.split(jax.random.uniform(key, (sum(sizes),), jnp.float32, -1.0, 1.0), np.cumsum(sizes)[:-1]))
    bounds = {name: math.prod(leaves["kernel"][:-1]) ** -0.5 for name, leaves in shapes.items()}
    return {
        name: {which: bounds[name] * next(pieces).reshape(shape) for which, shape in leaves.items()}
        for name, leaves in shapes.items()
    }
