"""The network's parameters as torch has them."""

from functools import cache

import jax
import numpy as np

from jaxopt_port.torch_interop import layout
from train.compare.messages import Vector
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
    """Which of torch's parameters is which of ours. The network puts channels first before it flattens, as torch."""
    params = jax.eval_shape(init_params, jax.random.key(0))
    shapes = {name: np.broadcast_to(np.float32(0), shape) for name, shape in SHAPES.items()}
    return layout.infer(shapes, params, layouts={"7.weight": layout.linear})


def weights_in_torch(params: Params) -> dict[str, np.ndarray]:
    """The parameters, or a tree like them, in torch's names and layouts."""
    return layout.to_torch(mapping(), params)


def vector(params: Params) -> Vector:
    """The parameters, or a tree like them, one after the other as torch has them."""
    return np.concatenate([array.ravel() for array in weights_in_torch(params).values()])


def params(vector: Vector, like: Params) -> Params:
    """A tree like `like` out of a vector."""
    sizes = [int(np.prod(shape)) for shape in SHAPES.values()]
    arrays = np.split(vector, np.cumsum(sizes)[:-1])
    weights = {name: array.reshape(SHAPES[name]) for name, array in zip(SHAPES, arrays, strict=True)}
    return layout.to_flax(mapping(), weights, like)
