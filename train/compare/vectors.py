"""The network's parameters as one vector, as the two processes exchange them."""

import numpy as np

from jaxopt_port.torch_interop import layout
from train.compare.messages import Vector
from train.model import Params, classes_of
from train.torch_layout import mapping, shapes, weights_in_torch


def vector(params: Params) -> Vector:
    """The parameters, or a tree like them, one after the other as torch has them."""
    return np.concatenate([array.ravel() for array in weights_in_torch(params).values()])


def params(vector: Vector, like: Params) -> Params:
    """A tree like `like` out of a vector."""
    of_torch = shapes(classes_of(like))
    sizes = [int(np.prod(shape)) for shape in of_torch.values()]
    arrays = np.split(vector, np.cumsum(sizes)[:-1])
    weights = {name: array.reshape(of_torch[name]) for name, array in zip(of_torch, arrays, strict=True)}
    return layout.to_flax(mapping(classes_of(like)), weights, like)
