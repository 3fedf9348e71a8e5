"""The tutorial's network as torch has it: its parameters' names and shapes, and which of ours they are."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import jax
import numpy as np

from jaxopt_port.torch_interop import layout
from train.model import KERNEL, Network, Params, classes_of, layers


@cache
def shapes(classes: int) -> dict[str, tuple[int, ...]]:
    """torch's parameters of the network as an `nn.Sequential`, by name, in torch's order."""
    found: dict[str, tuple[int, ...]] = {}
    at = 0  # of the module in the sequence
    before = None
    for layer in layers(classes):
        at += before == "conv" and layer.kind == "dense"  # Flatten
        kernel = (KERNEL, KERNEL) if layer.kind == "conv" else ()
        found |= {f"{at}.weight": (layer.outputs, layer.inputs, *kernel), f"{at}.bias": (layer.outputs,)}
        at += 2 if layer.kind == "conv" else 1  # MaxPool2d
        before = layer.kind
    return found


def ours(classes: int) -> Params:
    """The shapes of our parameters."""
    pictures = jax.ShapeDtypeStruct((1, 32, 32, 3), np.uint8)
    return jax.eval_shape(Network(classes).init, jax.random.key(0), pictures)["params"]


@cache
def mapping(classes: int) -> layout.Mapping:
    """For the tutorial's own names, those of an `nn.Sequential`."""
    return mapping_of({name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes(classes).items()}, classes)


def mapping_of(model: Mapping[str, Any], classes: int) -> layout.Mapping:
    """For a state dict of the network, whatever its layers are called.

    The network puts channels first before it flattens, as torch does, so that the layer there is a plain linear one.

    Raises:
      ValueError: it is another network's.
    """
    dense = next(layer for layer in layers(classes) if layer.kind == "dense")
    flattened = [name for name, array in model.items() if np.shape(array) == (dense.outputs, dense.inputs)]
    return layout.infer(model, ours(classes), layouts=dict.fromkeys(flattened, layout.linear))


def weights_in_torch(params: Params) -> dict[str, np.ndarray]:
    """The parameters, or a tree like them, in torch's names and layouts."""
    return layout.to_torch(mapping(classes_of(params)), params)
