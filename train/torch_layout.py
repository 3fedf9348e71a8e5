"""The tutorial's network as torch has it: its parameters' names and shapes, and which of ours they are."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import jax
import numpy as np

from jaxopt_port.torch_interop import layout
from train.model import Params, init_params

SHAPES = {
    "0.weight": (32, 3, 5, 5),
    "0.bias": (32,),
    "2.weight": (32, 32, 5, 5),
    "2.bias": (32,),
    "4.weight": (64, 32, 5, 5),
    "4.bias": (64,),
    "7.weight": (64, 1024),
    "7.bias": (64,),
    "8.weight": (10, 64),
    "8.bias": (10,),
}


@cache
def mapping() -> layout.Mapping:
    """For the tutorial's own names, those of an `nn.Sequential`."""
    return mapping_of({name: np.broadcast_to(np.float32(0), shape) for name, shape in SHAPES.items()})


def mapping_of(model: Mapping[str, Any]) -> layout.Mapping:
    """For a state dict of the network, whatever its layers are called.

    The network puts channels first before it flattens, as torch does, so that the layer there is a plain linear one.

    Raises:
      ValueError: it is another network's.
    """
    flattened = [name for name, array in model.items() if np.shape(array) == SHAPES["7.weight"]]
    params = jax.eval_shape(init_params, jax.random.key(0))
    return layout.infer(model, params, layouts=dict.fromkeys(flattened, layout.linear))


def weights_in_torch(params: Params) -> dict[str, np.ndarray]:
    """The parameters, or a tree like them, in torch's names and layouts."""
    return layout.to_torch(mapping(), params)
