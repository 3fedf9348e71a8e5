"""Which of torch's layers is which of flax's, where their shapes are equal: the same outputs from the same inputs."""

import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_port as optim
from jaxopt_port.torch_interop import layout, load_averaged_model, load_optimizer

torch = pytest.importorskip("torch")
from tests.torch_interop.convert import arrays  # noqa: E402
from tests.torch_interop.test_layout import check, draw, randomized  # noqa: E402

SIZE = 4


class Chain(torch.nn.Module):
    """Layers of equal shapes under any names, one after the other."""

    def __init__(self, names: list[str]):
        super().__init__()
        for name in names:
            parent: Any = self
            *path, last = name.split(".")
            for part in path:
                if not hasattr(parent, part):
                    parent.add_module(part, torch.nn.Module())
                parent = getattr(parent, part)
            parent.add_module(last, torch.nn.Linear(SIZE, SIZE))
        self.order = names

    def forward(self, x: Any) -> Any:
        for name in self.order:
            x = torch.tanh(self.get_submodule(name)(x))
        return x


def tree(paths: list[str]) -> Any:
    """The parameters of such a chain in flax."""
    params: dict[str, Any] = {}
    for path in paths:
        layer = params
        for part in path.split("/"):
            layer = layer.setdefault(part, {})
        layer.update(kernel=jnp.zeros((SIZE, SIZE)), bias=jnp.zeros(SIZE))
    return params


def apply(params: Any, paths: list[str], x: Any) -> Any:
    for path in paths:
        layer = params
        for part in path.split("/"):
            layer = layer[part]
        x = jnp.tanh(x @ layer["kernel"] + layer["bias"])
    return x


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("conv1 conv2 conv3", "Conv_0 Conv_1 Conv_2"),
        ("layer1 layer2 layer3", "layer_0 layer_1 layer_2"),
        ("b1.conv1 b1.conv2 b2.conv1 b2.conv2", "b1/Conv_0 b1/Conv_1 b2/Conv_0 b2/Conv_1"),
        ("enc.conv1 enc.conv2 dec.conv1 dec.conv2", "enc/Conv_0 enc/Conv_1 dec/Conv_0 dec/Conv_1"),
        ("b.1.10 b.11.0", "b/1/10 b/11/0"),
        ("layers.9.q layers.9.k layers.10.q layers.10.k", "layers_9/q layers_9/k layers_10/q layers_10/k"),
        ("q layers.0._orig_mod.k layers.0._orig_mod.q", "q layers_0/k layers_0/q"),
    ],
)
def test_equal_shapes_are_told_by_words_and_numbers(theirs: str, ours: str) -> None:
    network, paths = randomized(Chain(theirs.split())), ours.split()
    weights, x = arrays(network.state_dict()), draw(2, SIZE)
    mapping = layout.infer(weights, tree(paths))
    filled = layout.to_flax(mapping, weights, tree(paths))
    expected = network(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(apply(filled, paths, x), expected, rtol=1e-5, atol=1e-6)


class Model(torch.nn.Module):
    def __init__(self, inside: Any):
        super().__init__()
        self.model = inside


def data_parallel(module: Any) -> Any:
    return torch.nn.DataParallel(module).cpu()  # it takes the module to a GPU where there is one


@pytest.mark.parametrize("wrap", [data_parallel, torch.compile, Model, lambda module: module])
def test_wrappers_names_do_not_count(wrap: Callable[[Any], Any]) -> None:
    network = randomized(Chain(["q", "k"]))
    wrapped, params = wrap(network), tree(["q", "k"])
    weights = arrays(wrapped.state_dict())
    mapping = layout.infer(weights, params)
    assert [entry.path.partition("/")[0] for entry in mapping.entries] == ["q", "q", "k", "k"]
    assert list(layout.to_torch(mapping, params)) == list(weights)
    crossed = layout.infer(weights, params, pairs={"q": "k"}, layouts={"q.weight": layout.linear})
    names = list(weights)
    full = layout.infer(weights, params, pairs={names[0][:-7]: "k"}, layouts={names[0]: layout.linear})
    assert str(crossed) == str(full)
    assert {entry.source.name: entry.path for entry in crossed.entries}[names[0]] == "k/kernel"

    theirs = torch.optim.SGD(reversed(list(wrapped.named_parameters())), momentum=0.9)
    network(torch.ones(1, SIZE)).sum().backward()
    theirs.step()
    averaged = arrays(torch.optim.swa_utils.AveragedModel(wrapped).state_dict())
    for one in (mapping, layout.infer(arrays(network.state_dict()), params)):
        _, state = load_optimizer(optim.sgd, theirs.state_dict(), params, one)
        np.testing.assert_array_equal(state.slots.momentum_buffer["q"]["kernel"], network.q.weight.grad.T)
        loaded = load_averaged_model(averaged, params, one)
        np.testing.assert_array_equal(loaded.params["q"]["kernel"], network.q.weight.detach().T)


@pytest.mark.parametrize(("names", "known"), [({"x.weight": layout.linear}, "q.weight"), ({"(": layout.same}, "q.w")])
def test_layouts_of_no_array(names: Any, known: str) -> None:
    with pytest.raises(ValueError, match=f"layouts names .*, known are: {known}"):
        layout.infer(arrays(Chain(["q"]).state_dict()), tree(["q"]), layouts=names)


class Conv1D(torch.nn.Module):
    """HuggingFace's layer of GPT-2: its weight lies as flax's kernel does."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(inputs, outputs))
        self.bias = torch.nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Any) -> Any:
        return x @ self.weight + self.bias


def test_weights_that_are_not_transposed() -> None:
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return nn.Dense(SIZE, name="c_proj")(nn.Dense(SIZE, name="c_fc")(x))

    theirs = torch.nn.Sequential()
    theirs.add_module("c_fc", Conv1D(3, SIZE))
    theirs.add_module("c_proj", Conv1D(SIZE, SIZE))
    x = draw(2, 3)
    with pytest.raises(ValueError, match=r"'c_fc' .* only with layouts=\{'c_fc.weight': layout.same\}"):
        check(theirs, Network(), x, channels_last=False)
    with pytest.raises(ValueError, match=r"c_proj.weight \[4, 4\] could be any of: linear or same; say which"):
        check(theirs, Network(), x, channels_last=False, layouts={"c_fc.weight": layout.same})
    check(theirs, Network(), x, channels_last=False, layouts={r"c_\w+\.weight": layout.same})


def test_each_left_over_says_why() -> None:
    network = randomized(Chain(["emb", "a", "b", "c"]))
    network.lm_head = torch.nn.Linear(SIZE, SIZE)
    network.lm_head.weight = network.emb.weight
    network.register_buffer("position_ids", torch.arange(3))
    with pytest.raises(ValueError, match="cannot be told") as error:
        layout.infer(network.state_dict(), tree(["x", "y", "emb"]))
    lines = dict(re.findall(r"torch's '(\w+)' (.*)", str(error.value)))
    assert "nothing that is left in flax fits it; leave out of `torch` what flax lacks" in lines["position_ids"]
    assert "could be flax's 'x' (x/bias [4], x/kernel [4, 4]) or 'y' (" in lines["a"]
    assert "name the pair, pairs={'a': flax's layer}" in lines["a"]
    assert "lm_head.weight has the numbers of emb.weight: leave out what is tied" in lines["lm_head"]
    tied = {"wte.weight": network.emb.weight, "head.weight": network.emb.weight}
    with pytest.raises(ValueError, match=r"leave it out .* say to_torch\(..., tied=\{'head.weight': 'wte.weight'\}\)"):
        layout.infer(tied, {"wte": {"embedding": jnp.zeros((SIZE, SIZE))}})
    with pytest.raises(ValueError, match=r"'w' .* has no counterpart: nothing that is left in torch fits it"):
        layout.infer(Chain(["a"]).state_dict(), {**tree(["a"]), "w": {"scale": jnp.zeros(2)}})
