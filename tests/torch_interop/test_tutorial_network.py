"""The tutorial's network between torch and flax: every bit of its weights and momentum there and back."""

import copy
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_port as optim
from jaxopt_port.torch_interop import layout, load_optimizer, optimizer_state_dict
from train.model import Network

torch = pytest.importorskip("torch")
from tests.torch_interop.convert import arrays, tensors  # noqa: E402
from tests.train import torch_side  # noqa: E402

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
LABELS = np.array([3, 1, 4, 1])


@pytest.fixture(scope="module")
def params() -> Any:
    return Network().init(jax.random.key(0), jnp.zeros((1, 32, 32, 3), jnp.uint8))["params"]


@pytest.fixture(scope="module")
def mapping(params: Any) -> layout.Mapping:
    """The network flattens channels first itself."""
    return layout.infer(torch_side.torch_weights(params), params, layouts={"7.weight": layout.linear})


def same_bits(ours: Any, theirs: Any) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert (ours[name].shape, ours[name].dtype) == (value.shape, value.dtype)
        assert ours[name].tobytes() == value.tobytes()


def test_weights_there_and_back(params: Any, mapping: layout.Mapping) -> None:
    torch.manual_seed(0)
    theirs = torch_side.network(params)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    weights = arrays(theirs.state_dict())
    ours = layout.to_flax(mapping, weights, params)
    same_bits(layout.to_torch(mapping, ours), weights)
    logits = jax.jit(Network().apply)({"params": ours}, IMAGES)
    with torch.no_grad():
        np.testing.assert_allclose(logits, theirs(torch_side.to_tensor(IMAGES)), rtol=1e-4, atol=1e-4)


def test_momentum_moves_with_the_weights(params: Any, mapping: layout.Mapping) -> None:
    model = torch_side.network(params)
    sgd = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=0.1)

    def step(model: Any, sgd: Any) -> dict[str, Any]:
        sgd.zero_grad()
        logits = model(torch_side.to_tensor(IMAGES))
        torch.nn.functional.cross_entropy(logits, torch.from_numpy(LABELS)).backward()
        grads = {name: arrays(parameter.grad) for name, parameter in model.named_parameters()}
        sgd.step()
        return grads

    for _ in range(2):
        step(model, sgd)
    state_dict, names = arrays(sgd.state_dict()), [name for name, _ in model.named_parameters()]
    ours = layout.to_flax(mapping, arrays(model.state_dict()), params)
    optimizer, state = load_optimizer(optim.sgd, state_dict, ours, mapping)
    _, of_tensors = load_optimizer(
        optim.sgd, sgd.state_dict(), ours, mapping
    )  # live ones, that torch goes on to change
    written = {name: state_dict["state"][i]["momentum_buffer"] for i, name in enumerate(names)}
    same_bits(layout.to_torch(mapping, state.slots.momentum_buffer), written)

    exported = optimizer_state_dict(optimizer, state, ours, mapping)
    assert exported["param_groups"][0].pop("param_names") == names
    again = torch.optim.SGD(copy.deepcopy(model).parameters())
    again.load_state_dict(tensors(exported))
    same_bits(
        {i: one["momentum_buffer"] for i, one in arrays(again.state_dict()["state"]).items()},
        {i: one["momentum_buffer"] for i, one in state_dict["state"].items()},
    )

    grads = step(model, sgd)
    for tensor, array in zip(jax.tree.leaves(of_tensors), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(tensor, array)
    new, _ = optimizer.step(layout.to_flax(mapping, grads, ours), state, ours)
    for name, value in layout.to_torch(mapping, new).items():
        expected = arrays(model.state_dict())[name]
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-7, err_msg=name)
