"""GradScaler and AveragedModel go on in torch and here from each other's state dicts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_port as optim
from jaxopt_port import swa_utils
from jaxopt_port.torch_interop import (
    averaged_model_state_dict,
    grad_scaler_state_dict,
    layout,
    load_averaged_model,
    load_grad_scaler,
)

torch = pytest.importorskip("torch")
from tests.torch_interop.convert import arrays, tensors  # noqa: E402

OPTIONS = {"init_scale": 1024.0, "growth_factor": 4.0, "backoff_factor": 0.25, "growth_interval": 3}


def test_grad_scaler() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    sgd, theirs = torch.optim.SGD([weight]), torch.amp.GradScaler("cpu", **OPTIONS)
    ours = optim.GradScaler(**OPTIONS)
    state = ours.init()
    for step, found_inf in enumerate([False, True, False, False, False, False, True]):
        theirs.scale((weight * (np.inf if found_inf else 1.0)).sum()).backward()
        theirs.step(sgd)
        theirs.update()
        sgd.zero_grad()
        state = ours.update(state, jnp.asarray(found_inf))
        written = theirs.state_dict()
        assert grad_scaler_state_dict(ours, state) == written
        if step == 3:
            ours, state = load_grad_scaler(written)
            theirs = torch.amp.GradScaler("cpu")
            theirs.load_state_dict(written)
    assert grad_scaler_state_dict(optim.GradScaler(enabled=False), state) == {}
    with pytest.raises(RuntimeError, match="The source state dict is empty"):
        load_grad_scaler({})
    with pytest.raises(ValueError, match=r"no growth_factor, .* Pass scaler\.state_dict\(\), .*It has scale$"):
        load_grad_scaler({"scale": 1.0})


def test_averaged_model() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    theirs = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)

    def draw() -> None:
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape))

    zeros = {"Dense_0": {"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros(2)}}
    zeros["BatchNorm_0"] = {"scale": jnp.zeros(2), "bias": jnp.zeros(2)}
    stats = {"BatchNorm_0": {"mean": jnp.zeros(2), "var": jnp.zeros(2)}}
    mapping = layout.infer(arrays(model.state_dict()), {"params": zeros, "batch_stats": stats})
    for _ in range(3):
        draw()
        theirs.update_parameters(model)
    written = arrays(theirs.state_dict())
    averaged = load_averaged_model(written, zeros, mapping, stats)
    back = averaged_model_state_dict(averaged, mapping)
    assert back["n_averaged"].dtype == written["n_averaged"].dtype
    for name, value in back.items():
        np.testing.assert_array_equal(value, written[name])
    assert written.keys() - back.keys() == {"module.1.num_batches_tracked"}

    draw()
    theirs.update_parameters(model)
    ours = swa_utils.averaged_model(use_buffers=True)
    weights = arrays(model.state_dict())
    averaged = ours.update(averaged, layout.to_flax(mapping, weights, zeros), layout.to_flax(mapping, weights, stats))
    resumed = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
    resumed.load_state_dict(tensors(back))
    resumed.update_parameters(model)
    for name, value in averaged_model_state_dict(averaged, mapping).items():
        np.testing.assert_allclose(value, arrays(theirs.state_dict())[name], rtol=1e-6)
        np.testing.assert_array_equal(arrays(resumed.state_dict())[name], arrays(theirs.state_dict())[name])
    assert jax.tree.structure(averaged.params) == jax.tree.structure(zeros)
    with pytest.raises(ValueError, match="no n_averaged: the state dict is not of an AveragedModel"):
        load_averaged_model(weights, zeros, mapping)
