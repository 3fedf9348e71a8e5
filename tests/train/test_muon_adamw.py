"""Muon beside AdamW, against torch's two optimizers."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_port import adamw, muon
from train.muon_adamw import muon_adamw


def test_it_is_torchs_two() -> None:
    """Kernels are [in, out], and torch's weights [out, in]: a wide and a tall one, whose steps Muon scales apart."""
    torch = pytest.importorskip("torch")
    draw = np.random.default_rng(0)
    shapes = {"wide": (3, 12), "tall": (12, 3), "bias": (12,)}
    params, grads = ({name: draw.normal(size=shape).astype("f") for name, shape in shapes.items()} for _ in range(2))
    weights = {name: torch.nn.Parameter(torch.from_numpy(value.T.copy())) for name, value in params.items()}
    matrices = torch.optim.Muon([weights["wide"], weights["tall"]], lr=0.1, momentum=0.8)
    rest = torch.optim.AdamW([weights["bias"]], lr=0.01, betas=(0.8, 0.9), amsgrad=True)
    optimizer: Any = muon_adamw(lr=0.1, momentum=0.8, adamw_lr=0.01, adamw_betas=(0.8, 0.9), adamw_amsgrad=True)
    state, ours = optimizer.init(params), jax.tree.map(jnp.asarray, params)
    for _ in range(3):
        ours, state = jax.jit(optimizer.step)(grads, state, ours)
        for name, weight in weights.items():
            weight.grad = torch.from_numpy(grads[name].T.copy())
        matrices.step()
        rest.step()
    for name, weight in weights.items():
        bound = 1e-6 if name == "bias" else 2e-3  # Muon multiplies in bfloat16; a wrong scale would be 0.1 apart
        np.testing.assert_allclose(ours[name], weight.detach().numpy().T, rtol=0, atol=bound)


def test_it_has_the_options_of_both() -> None:
    """But for the axes, which are those of Flax's kernels, and the groups."""
    of_muon, of_adamw = ({*inspect.signature(factory).parameters} - {"param_groups"} for factory in (muon, adamw))
    options = {*inspect.signature(muon_adamw).parameters}
    assert options == of_muon - {"weight_dimension_numbers"} | {f"adamw_{name}" for name in of_adamw}
    with pytest.raises(TypeError, match="unexpected keyword argument 'foo'"):
        muon_adamw(foo=1)
