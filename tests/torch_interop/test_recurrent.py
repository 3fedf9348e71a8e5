"""torch's LSTM, GRU and RNN in flax's cells and in equinox's: the same outputs from the same inputs, and back."""

from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxopt_port as optim
from jaxopt_port.torch_interop import layout, load_optimizer, optimizer_state_dict

torch = pytest.importorskip("torch")
from tests.torch_interop.convert import arrays, tensors  # noqa: E402
from tests.torch_interop.test_layout import draw  # noqa: E402

IN, HIDDEN = 3, 4
X = draw(2, 5, IN)


def filled(theirs: Any, params: Any, **options: Any) -> tuple[layout.Mapping, Any]:
    weights = arrays(theirs.state_dict())
    mapping = layout.infer(weights, params, **options)
    return mapping, layout.to_flax(mapping, weights, params)


def output(theirs: Any) -> np.ndarray:
    with torch.no_grad():
        return theirs(torch.from_numpy(X))[0].numpy()


def goes_back(theirs: Any, mapping: layout.Mapping, params: Any) -> None:
    """torch gives the same from what comes back, though its two biases are another pair with the same sum."""
    expected, back = output(theirs), layout.to_torch(mapping, params)
    assert list(back) == list(theirs.state_dict())
    theirs.load_state_dict(tensors(back))
    np.testing.assert_allclose(output(theirs), expected, atol=1e-6)
    again = jax.tree.leaves(layout.to_flax(mapping, back, params))
    for at in layout.weight_leaves(params).values():
        np.testing.assert_array_equal(again[at], jax.tree.leaves(params)[at])


CELLS = {"LSTM": nn.OptimizedLSTMCell, "GRU": nn.GRUCell, "RNN": nn.SimpleCell}


@pytest.mark.parametrize("kind", CELLS)
def test_linen(kind: str) -> None:
    layers = 3

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            for _ in range(layers):
                x = nn.RNN(CELLS[kind](HIDDEN))(x)
            return x

    torch.manual_seed(0)
    theirs = getattr(torch.nn, kind)(IN, HIDDEN, layers, batch_first=True)
    mapping, params = filled(theirs, Network().init(jax.random.key(0), X))
    actual: Any = Network().apply(params, X)
    np.testing.assert_allclose(actual, output(theirs), atol=1e-6)
    goes_back(theirs, mapping, params)


def test_both_directions_are_asked_about() -> None:
    network = nn.Bidirectional(nn.RNN(nn.LSTMCell(HIDDEN)), nn.RNN(nn.LSTMCell(HIDDEN)))
    theirs = torch.nn.LSTM(IN, HIDDEN, batch_first=True, bidirectional=True)
    empty = network.init(jax.random.key(0), X)
    with pytest.raises(
        ValueError, match=r"torch's 'l0_reverse' .* name the pair, pairs=\{'l0_reverse': flax's layer\}"
    ):
        filled(theirs, empty)
    forward, backward = (f"{name}/cell" for name in ("forward_rnn", "backward_rnn"))
    mapping, params = filled(theirs, empty, pairs={"l0": forward, "l0_reverse": backward})
    actual: Any = network.apply(params, X)
    np.testing.assert_allclose(actual, output(theirs), atol=1e-6)
    goes_back(theirs, mapping, params)


@pytest.mark.parametrize(
    ("kind", "cell"), [("LSTM", nnx.LSTMCell), ("LSTM", nnx.OptimizedLSTMCell), ("RNN", nnx.SimpleCell)]
)
def test_nnx(kind: str, cell: Any) -> None:
    torch.manual_seed(0)
    theirs = getattr(torch.nn, kind)(IN, HIDDEN, batch_first=True)
    graph, state = nnx.split(nnx.RNN(cell(IN, HIDDEN, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0)))
    mapping, params = filled(theirs, state)
    np.testing.assert_allclose(nnx.merge(graph, params)(jnp.asarray(X)), output(theirs), atol=1e-6)
    goes_back(theirs, mapping, params)


def test_a_cell_that_lacks_a_bias_is_refused() -> None:
    theirs = torch.nn.GRU(IN, HIDDEN, batch_first=True)
    with pytest.raises(ValueError, match=r"torch's 'l0' .* has no counterpart"):
        filled(theirs, nnx.state(nnx.GRUCell(IN, HIDDEN, rngs=nnx.Rngs(0)), nnx.Param))


@pytest.mark.parametrize(("kind", "bias"), [("LSTM", True), ("LSTM", False), ("GRU", False)])
def test_equinox(kind: str, bias: bool) -> None:
    torch.manual_seed(0)
    theirs = getattr(torch.nn, f"{kind}Cell")(IN, HIDDEN, bias=bias)
    cell = getattr(eqx.nn, f"{kind}Cell")(IN, HIDDEN, use_bias=bias, key=jax.random.key(0))
    _, cell = filled(theirs, cell)
    h, c = draw(HIDDEN), draw(HIDDEN)
    lstm = kind == "LSTM"
    with torch.no_grad():
        expected = theirs(
            torch.from_numpy(X[0, 0]), tuple(map(torch.from_numpy, (h, c))) if lstm else torch.from_numpy(h)
        )
    actual = cell(jnp.asarray(X[0, 0]), (h, c) if lstm else h)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, atol=1e-6), actual, expected)


def test_leaves_with_torchs_own_names() -> None:
    """Two layers in two directions, beside a layer that lies as flax's."""
    torch.manual_seed(0)
    theirs = torch.nn.ModuleDict({"rnn": torch.nn.LSTM(IN, IN, 2, bidirectional=True), "out": torch.nn.Linear(IN, IN)})
    weights = arrays(theirs.state_dict())
    own = {name.removeprefix("rnn."): x for name, x in weights.items() if name.startswith("rnn.")}
    shapes: Any = {"rnn": own, "out": {"kernel": weights["out.weight"].T, "bias": weights["out.bias"]}}
    moved = layout.to_flax(layout.infer(weights, shapes), weights, jax.tree.map(np.zeros_like, shapes))
    jax.tree.map(np.testing.assert_array_equal, moved, shapes)


def test_the_optimizers_state_of_two_biases_is_refused() -> None:
    theirs = torch.nn.LSTM(IN, HIDDEN, batch_first=True)
    adam = torch.optim.Adam(theirs.parameters())
    theirs(torch.from_numpy(X))[0].sum().backward()
    adam.step()
    mapping, params = filled(theirs, nn.RNN(nn.LSTMCell(HIDDEN)).init(jax.random.key(0), X))
    with pytest.raises(ValueError, match=r"'cell/hi/bias' is the sum of two biases of torch's"):
        load_optimizer(optim.adam, adam.state_dict(), params, mapping)
    optimizer = optim.adam()
    with pytest.raises(ValueError, match="is the sum of two biases of torch's"):
        optimizer_state_dict(optimizer, optimizer.init(params), params, mapping)


def test_a_cell_with_both_biases_takes_the_optimizer_too() -> None:
    theirs = torch.nn.LSTMCell(IN, HIDDEN)
    adam = torch.optim.Adam(theirs.parameters())
    theirs(torch.from_numpy(X[0]))[0].sum().backward()
    adam.step()
    own = {"cell": {name: jnp.zeros(p.shape) for name, p in theirs.named_parameters()}}
    mapping, params = filled(theirs, own)
    optimizer, state = load_optimizer(optim.adam, adam.state_dict(), params, mapping)
    back = optimizer_state_dict(optimizer, state, params, mapping)["state"]
    for i, one in adam.state_dict()["state"].items():
        np.testing.assert_array_equal(back[i]["exp_avg"], one["exp_avg"])
