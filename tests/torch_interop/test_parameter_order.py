"""Which parameter each state of a torch optimizer belongs to: of part of a model, by name, among its statistics."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_port as optim
from jaxopt_port.torch_interop import layout, load_optimizer, optimizer_state_dict

torch = pytest.importorskip("torch")
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


def check(model: Any, theirs: Any, state_dict: Any, params: Any = VARIABLES, **options: Any) -> Any:
    """Every moment is its parameter's, and those of parameters that torch's optimizer has not are frozen."""
    mapping = layout.infer(model.state_dict(), VARIABLES)
    optimizer, state = load_optimizer(optim.adamw, state_dict, params, mapping, **options)
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
    with pytest.raises(
        ValueError, match=r"contains 4 parameters, params 8: .*param_names=.*named_parameters.* if p.requires_grad"
    ):
        check(model, theirs, state_dict)
    state_dict["param_groups"][0]["param_names"] = [name for name, p in model.named_parameters() if p.requires_grad]
    check(model, theirs, state_dict)


def test_too_many_ways_to_look_at() -> None:
    layers = torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(12)))
    theirs = torch.optim.AdamW([{"params": layer.parameters()} for layer in layers[1:]])
    layers(torch.ones(1, 2)).sum().backward()
    theirs.step()
    params = {f"Dense_{i}": {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)} for i in range(12)}
    mapping = layout.infer(layers.state_dict(), params)
    with pytest.raises(ValueError, match=r"contains 22 parameters, params 24: .*Several ways to share them out"):
        load_optimizer(optim.adamw, theirs.state_dict(), params, mapping)


NAMES = {
    "numbers": [str(i) for i in range(12)],
    "words": ["query", "key", "value", "out"],
    "layers": [f"layers.{i}.{name}" for i in range(11) for name in ("up", "down")],
}
FACTORIES = {
    "adam": torch.optim.Adam,
    "sgd": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    "adafactor": torch.optim.Adafactor,
    "muon": lambda params: torch.optim.Muon(params, adjust_lr_fn="match_rms_adamw"),
    "lbfgs": lambda params: torch.optim.LBFGS(params, max_iter=2),
}


class Chain(torch.nn.Module):
    """Layers of equal shapes, whose order a sort changes."""

    def __init__(self, names: list[str]):
        super().__init__()
        torch.manual_seed(0)
        self.weights = {name: torch.nn.Parameter(torch.randn(3, 3)) for name in names}

    def run(self, optimizer: Any) -> Any:
        """One step of torch's on a loss that has a gradient of its own for each layer."""

        def closure() -> Any:
            optimizer.zero_grad()
            loss: Any = sum((i + 1) * (w - i).pow(4).sum() for i, w in enumerate(self.weights.values()))
            loss.backward()
            return loss

        optimizer.step(closure)

    def params(self) -> dict[str, Any]:
        return {name: jnp.asarray(arrays(w.detach())) for name, w in self.weights.items()}


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
@pytest.mark.parametrize("name", FACTORIES)
def test_equal_layers_in_the_order_of_modules(name: str, names: list[str]) -> None:
    chain = Chain(names)
    theirs = FACTORIES[name](list(chain.weights.values()))
    chain.run(theirs)
    state_dict, params, factory = arrays(theirs.state_dict()), chain.params(), optim.optimizers[name]
    for mapping in (None, layout.infer(dict(sorted(params.items())), params)):
        with pytest.raises(ValueError, match=r"which of torch's parameters comes first, .* Say torch's order: param_"):
            load_optimizer(factory, state_dict, params, mapping)
    first = layout.infer({key: params[key] for key in names}, params)
    for mapping, said in ((first, None), (None, params), (layout.infer(dict(sorted(params.items())), params), names)):
        order = names if said is params else said
        optimizer, state = load_optimizer(factory, state_dict, params, mapping, param_names=order)
        if order is not None:
            with pytest.raises(ValueError, match="which of torch's parameters comes first"):
                optimizer_state_dict(optimizer, state, params, mapping)
            with pytest.raises(ValueError, match=f"param_names has no {names[1]}, which the optimizer steps"):
                optimizer_state_dict(optimizer, state, params, mapping, param_names=[names[0], *names[2:]])
        written = optimizer_state_dict(optimizer, state, params, mapping, param_names=order)
        assert written["param_groups"][0]["param_names"] == names
        for i, one in state_dict["state"].items():
            for key in (key for key in one if key != "al"):
                jax.tree.map(np.testing.assert_array_equal, written["state"][i][key], one[key])


@pytest.mark.parametrize("name", ["adam", "lbfgs"])
def test_the_next_step_is_torchs(name: str) -> None:
    chain = Chain(NAMES["numbers"])
    theirs = FACTORIES[name](list(chain.weights.values()))
    chain.run(theirs)
    params = chain.params()
    optimizer, state = load_optimizer(
        optim.optimizers[name], arrays(theirs.state_dict()), params, param_names=NAMES["numbers"]
    )
    _, params, _ = optimizer.step_closure(
        lambda p: sum((i + 1) * ((p[str(i)] - i) ** 4).sum() for i in range(12)), state, params
    )
    chain.run(theirs)
    for key, expected in chain.params().items():
        np.testing.assert_allclose(params[key], expected, rtol=1e-5)


@pytest.mark.parametrize(("names", "listed"), [([f"layers.{i}" for i in range(9)], False), (NAMES["numbers"], True)])
def test_what_is_evidently_in_the_order_of_modules(names: list[str], listed: bool) -> None:
    chain = Chain(names)
    theirs = torch.optim.Adam(list(chain.weights.values()))
    chain.run(theirs)
    params = list(chain.params().values()) if listed else chain.params()  # a list keeps its order
    optimizer, state = load_optimizer(optim.adam, theirs.state_dict(), params)
    written = optimizer_state_dict(optimizer, state, params)
    moments = [leaf for leaf in jax.tree.leaves(state.slots) if leaf.min() < 0]  # not squares
    for i, one in enumerate(theirs.state.values()):
        np.testing.assert_array_equal(moments[i], one["exp_avg"])
        np.testing.assert_array_equal(written["state"][i]["exp_avg"], one["exp_avg"])
