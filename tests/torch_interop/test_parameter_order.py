"""Which parameter each state of a torch optimizer belongs to: of part of a model, by name, among its statistics."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_port as optim
from jaxopt_port.torch_interop import layout, load_optimizer, optimizer_state_dict

torch = pytest.importorskip("torch", reason="torch, the oracle, is not installed")
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict  # noqa: E402

from tests.torch_interop.convert import arrays  # noqa: E402


class Network(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.Dense(2)(nn.Dense(3)(nn.BatchNorm(use_running_average=True)(nn.Dense(3)(x))))


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    norm = torch.nn.BatchNorm1d(3)
    return torch.nn.Sequential(torch.nn.Linear(3, 3), norm, torch.nn.Linear(3, 3), torch.nn.Linear(3, 2))


VARIABLES = Network().init(jax.random.key(0), jnp.ones((1, 3)))


def stepped(model: Any, groups: Any) -> Any:
    """torch's optimizer after a step."""
    theirs = torch.optim.AdamW(groups)
    model(torch.arange(12.0).reshape(4, 3)).square().sum().backward()
    theirs.step()
    return theirs


def check(model: Any, theirs: Any, state_dict: Any, params: Any = VARIABLES) -> Any:
    """Every moment is its parameter's, and those of parameters that torch's optimizer has not are frozen."""
    mapping = layout.infer(model.state_dict(), VARIABLES)
    optimizer, state = load_optimizer(optim.adamw, state_dict, params, mapping)
    written = optimizer_state_dict(optimizer, state, params, mapping)
    found = {
        name: written["state"][i]["exp_avg"]
        for group in written["param_groups"]
        for i, name in zip(group["params"], group["param_names"], strict=True)
    }
    moments = {name: theirs.state.get(p) for name, p in model.named_parameters()}
    expected = {name: arrays(moment["exp_avg"]) for name, moment in moments.items() if moment}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)
    return optimizer, state


@pytest.mark.parametrize("params", [VARIABLES, VARIABLES["params"]], ids=["variables", "params"])
def test_trees_as_they_are_given_to_infer(model: Any, params: Any) -> None:
    theirs = stepped(model, model.parameters())
    optimizer, state = check(model, theirs, theirs.state_dict(), params)
    new, _ = optimizer.step(jax.tree.map(jnp.ones_like, params), state, params)
    if params is VARIABLES:
        np.testing.assert_array_equal(new["batch_stats"]["BatchNorm_0"]["var"], 1)


@pytest.mark.parametrize("param_names", [False, True], ids=["params", "param_names"])
def test_names_in_another_order(model: Any, param_names: bool) -> None:
    named = list(reversed(list(model.named_parameters())))
    theirs = stepped(model, named if param_names else [p for _, p in named])
    state_dict: Any = theirs.state_dict() if param_names else get_optimizer_state_dict(model, theirs)
    assert state_dict["param_groups"][0]["param_names" if param_names else "params"][0] == "3.bias"
    check(model, theirs, state_dict)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["3.weight", "3.weight"], "more than once: 3.weight"),
        (["3.weight"], "group 0 of the state dict has 1 param_names for 2 params: give it one for each"),
        (["3.weight", "x"], "not in the mapping: x. It has 0.weight, 0.bias"),
    ],
)
def test_names_that_are_wrong(model: Any, names: list[str], message: str) -> None:
    theirs = stepped(model, model[3].parameters())
    state_dict = theirs.state_dict()
    state_dict["param_groups"][0]["param_names"] = names
    with pytest.raises(ValueError, match=message):
        check(model, theirs, state_dict)


def test_an_optimizer_of_some_parameters(model: Any) -> None:
    model[:2].requires_grad_(False)
    theirs = stepped(model, [{"params": [model[3].weight]}, {"params": [model[3].bias], "weight_decay": 0.0}])
    check(model, theirs, theirs.state_dict())  # the only ones of their shapes

    theirs = stepped(model, [p for p in model.parameters() if p.requires_grad])
    state_dict = theirs.state_dict()
    with pytest.raises(ValueError, match=r"contains 4 parameters, params 8: .*named_parameters.* if p.requires_grad"):
        check(model, theirs, state_dict)
    state_dict["param_groups"][0]["param_names"] = [name for name, p in model.named_parameters() if p.requires_grad]
    check(model, theirs, state_dict)


def test_too_many_ways_to_look_at() -> None:
    layers = torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(12)))
    theirs = torch.optim.AdamW([{"params": layer.parameters()} for layer in layers])
    layers(torch.ones(1, 2)).sum().backward()
    theirs.step()
    params = {f"Dense_{i}": {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)} for i in range(12)}
    mapping = layout.infer(layers.state_dict(), params)
    with pytest.raises(ValueError, match="there are too many ways to look at them all: give each its names"):
        load_optimizer(optim.adamw, theirs.state_dict(), params, mapping)
