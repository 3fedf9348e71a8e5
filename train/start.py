"""Where a run starts from, and the order in which it takes the examples: a PyTorch script's, or JAX's own."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from jaxopt_port.torch_interop import Generator, data_loader_order, init
from train.config import Config
from train.model import Params, init_params

CHANNELS = (3, 32, 32, 64)
FEATURES = (1024, 64, 10)

Order = Int[np.ndarray, " n"]


def initial_params(config: Config) -> Params:
    """The initial parameters that `--init` and `--seed` name.

    With `--init torch` they are those of `torch.manual_seed(seed); model = Network()`, on a CPU with AVX2 in every bit.
    """
    if config.init == "torch":
        return jax.tree.map(jnp.asarray, _torch_params(Generator(config.seed)))
    return init_params(jax.random.key(config.seed))


def epoch_order(config: Config, number: int, examples: int) -> Order:
    """The order in which an epoch takes the examples; a function of the configuration and the epoch's number alone.

    With `--init torch` it is that of a script which seeds, makes the network, and goes through a
    `DataLoader(shuffle=True)` in each epoch; where the run evaluates, through another one after it.

    Args:
      config: the run's.
      number: the epoch's, from 1.
      examples: how many there are.
    """
    if not config.shuffle:
        return np.arange(examples)
    if config.init == "jax":
        return np.random.default_rng((config.seed, number)).permutation(examples)
    generator = Generator(config.seed)
    _torch_params(generator)
    for _ in range(number - 1):
        data_loader_order(generator, examples)
        if config.evaluates:
            generator.random()  # any DataLoader draws a base seed
    return data_loader_order(generator, examples)


def _torch_params(generator: Generator) -> Params:
    """In the order in which the tutorial makes its layers, in flax's layouts."""
    params: Params = {}
    for at, (before, after) in enumerate(itertools.pairwise(CHANNELS)):
        drawn = init.conv(generator, before, after, (5, 5))
        params[f"Conv_{at}"] = {"kernel": drawn["weight"].transpose(2, 3, 1, 0), "bias": drawn["bias"]}
    for at, (before, after) in enumerate(itertools.pairwise(FEATURES)):
        drawn = init.linear(generator, before, after)
        params[f"Dense_{at}"] = {"kernel": drawn["weight"].T, "bias": drawn["bias"]}
    return params
