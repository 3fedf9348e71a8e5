"""torch's tensors as they are in a running program: on the tape, conjugated, in types that NumPy does not have."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_port.torch_interop import layout
from jaxopt_port.torch_interop.files.as_array import as_array
from jaxopt_port.torch_interop.files.pt_types import DTYPES

torch = pytest.importorskip("torch")

PARAMS = {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)}
WEIGHTS = {"weight": np.ones((3, 2)), "bias": np.zeros(3)}


@pytest.mark.parametrize("name", DTYPES)
def test_every_type_to_the_bit(name: str) -> None:
    tensor = torch.tensor([0.0, 1.0, 2.0, 0.5]).to(getattr(torch, name.removeprefix("torch.")))
    array = as_array(tensor)
    assert array.dtype == DTYPES[name]
    assert array.tobytes() == tensor.view(torch.uint8).numpy().tobytes()


def test_conjugated() -> None:
    np.testing.assert_array_equal(as_array(torch.tensor([1 + 2j]).conj()), [1 - 2j])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_live_modules_parameters(dtype: Any) -> None:
    module = torch.nn.Linear(2, 3, dtype=dtype)
    named = dict(module.named_parameters())
    filled = layout.to_flax(layout.infer(named, PARAMS), named, PARAMS)
    np.testing.assert_array_equal(filled["kernel"], module.weight.detach().float().numpy().T)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epoch": 3}, r"'epoch' is no array but a int: pass module.state_dict\(\), such as checkpoint\['model'\]"),
        ({"optimizer": {"state": {}}}, "'optimizer' is no array but a dict"),
        ({"weight": WEIGHTS["weight"] * 1j}, "'weight' is complex128, 'kernel' in flax is float32"),
    ],
)
def test_what_is_no_modules_state_dict(change: dict[str, Any], message: str) -> None:
    weights = {**WEIGHTS, **change}
    with pytest.raises(ValueError, match=message):
        layout.to_flax(layout.infer(weights, PARAMS), weights, PARAMS)


def test_extra_state_is_no_array() -> None:
    mapping = layout.infer({**WEIGHTS, "_extra_state": None}, PARAMS)
    assert list(mapping.by_name()) == list(WEIGHTS)
