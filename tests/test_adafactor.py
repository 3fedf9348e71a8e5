"""Adafactor on flax's kernels, whose axes lie otherwise than torch's."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_port as optim
from jaxopt_port import ParamGroup
from jaxopt_port.torch_interop import layout

SHAPES = {"c.weight": (4, 2, 3, 5), "fc.weight": (3, 2), "fc.bias": (3,)}
PARAMS = {
    "Conv_0": {"kernel": jnp.ones((3, 5, 2, 4))},
    "Dense_0": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)},
}


def test_factored_axes_are_torchs_last_two() -> None:
    torch = pytest.importorskip("torch")
    rng, mapping = np.random.default_rng(0), layout.infer(SHAPES, PARAMS)

    def drawn() -> dict[str, np.ndarray]:
        return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}

    start = drawn()
    theirs = {name: torch.nn.Parameter(torch.from_numpy(array.copy())) for name, array in start.items()}
    torchs = torch.optim.Adafactor(theirs.values(), lr=0.1, weight_decay=0.1)
    params = layout.to_flax(mapping, start, PARAMS)
    right, wrong = optim.adafactor(0.1, weight_decay=0.1, factored_axes=(0, 1)), optim.adafactor(0.1, weight_decay=0.1)
    others, state, other = params, right.init(params), wrong.init(params)
    for _ in range(5):
        grads = drawn()
        for name, parameter in theirs.items():
            parameter.grad = torch.from_numpy(grads[name])
        torchs.step()
        ours = layout.to_flax(mapping, grads, PARAMS)
        params, state = jax.jit(right.step)(ours, state, params)
        others, other = jax.jit(wrong.step)(ours, other, others)
    expected = {name: parameter.detach().numpy() for name, parameter in theirs.items()}
    for name, array in layout.to_torch(mapping, params).items():
        np.testing.assert_allclose(array, expected[name], rtol=3e-6, atol=1e-6)
    apart = layout.to_torch(mapping, others)["c.weight"] - expected["c.weight"]
    assert np.abs(apart).max() > 1e-2  # factored over in and out


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ((0, 4), r"factored_axes \(0, 4\) does not fit a parameter with size \[3, 5, 2, 4\]"),
        ((-4, 0), r"factored_axes \(-4, 0\) does not fit .* must be two different axes of it"),
        ((0, 1, 2), r"factored_axes must be two axes, such as \(0, 1\), .* not \(0, 1, 2\)"),
        ((0, True), r"factored_axes must be two axes"),
    ],
)
def test_axes_that_are_none_are_refused(axes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        optim.adafactor(factored_axes=axes).init(PARAMS)


def test_a_group_has_its_own() -> None:
    state = optim.adafactor(param_groups=[ParamGroup("Conv_0/.*", factored_axes=(0, 1))]).init(PARAMS)
    assert state.slots.row_var["Conv_0"]["kernel"].shape == (3, 1, 2, 4)
    assert state.slots.row_var["Dense_0"]["kernel"].shape == (2, 1)
    assert state.slots.variance["Dense_0"]["bias"].shape == (3,)
