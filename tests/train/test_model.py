"""The network against torch's, with carried weights."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train import data
from train.config import Config
from train.model import Network, Params, cross_entropy, max_pool

torch = pytest.importorskip("torch")
from tests.train import torch_side  # noqa: E402


def pictures(kind: str) -> data.Examples:
    if kind == "digits":  # flat areas: many equal values in a pooling window
        return data.load("digits", "test").first(16)
    random = np.random.default_rng(0)
    return data.Examples(random.integers(0, 256, (16, 32, 32, 3), np.uint8), random.integers(0, 10, 16, np.int32))


# In noise some values of a pooling window nearly tie, and float32's rounding may decide for either.
@pytest.mark.parametrize(("kind", "dtype", "tolerance"), [("digits", "float32", 1e-5), ("noise", "float64", 1e-10)])
def test_forward_and_backward_are_torchs(kind: str, dtype: str, tolerance: float) -> None:
    images, labels = pictures(kind)

    def loss_fn(params: Params) -> tuple[jax.Array, Any]:
        logits: Any = Network().apply({"params": params}, images)
        return cross_entropy(logits, jnp.asarray(labels)), logits

    with jax.enable_x64(dtype == "float64"):
        params = jax.tree.map(lambda p: p.astype(dtype), torch_side.initial_params(Config()))
        (loss, logits), grads = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(params)

    torch_dtype = getattr(torch, dtype)
    model = torch_side.network(params).to(torch_dtype)
    torch_logits = model(torch_side.to_tensor(images).to(torch_dtype))
    torch_loss = torch.nn.CrossEntropyLoss()(torch_logits, torch.from_numpy(labels).long())
    torch_loss.backward()

    np.testing.assert_allclose(logits, torch_logits.detach().numpy(), rtol=0, atol=tolerance)
    np.testing.assert_allclose(loss, torch_loss.item(), rtol=tolerance)
    ours = torch_side.torch_weights(grads)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        size = parameter.grad.abs().max().item()
        np.testing.assert_allclose(ours[name], parameter.grad.numpy(), rtol=0, atol=tolerance * size, err_msg=name)


def test_every_pixel_value_is_to_tensors() -> None:
    values = np.tile(np.arange(256, dtype=np.uint8), 4)
    images = values.reshape(1, 32, 32, 1).repeat(3, axis=-1)
    params = jax.tree.map(jnp.zeros_like, torch_side.initial_params(Config()))
    params["Conv_0"]["kernel"] = params["Conv_0"]["kernel"].at[2, 2, 0, 0].set(1)  # hands the red pixels on
    seen = jax.jit(lambda images: Network().apply({"params": params}, images, capture_intermediates=True)[1])(images)
    pixels = seen["intermediates"]["Conv_0"]["__call__"][0][..., 0]
    np.testing.assert_array_equal(pixels, torch_side.to_tensor(images)[:, 0])


def test_max_pool_is_torchs_with_equal_values_and_nan() -> None:
    random = np.random.default_rng(0)
    x = random.integers(0, 3, (4, 8, 6, 5)).astype(np.float32)
    weights = random.normal(size=(4, 4, 3, 5)).astype(np.float32)
    grads = jax.grad(lambda x: (max_pool(x) * weights).sum())(x)

    torch_x = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    pooled = torch.nn.functional.max_pool2d(torch_x, 2)
    (pooled * torch.tensor(weights.transpose(0, 3, 1, 2))).sum().backward()
    assert torch_x.grad is not None
    np.testing.assert_array_equal(max_pool(jnp.asarray(x)), pooled.detach().numpy().transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(grads, torch_x.grad.numpy().transpose(0, 2, 3, 1))

    for place in range(4):
        window = jnp.zeros(4).at[place].set(jnp.nan).reshape(1, 2, 2, 1)
        assert jnp.isnan(max_pool(window)).all()


def test_initial_parameters_have_torchs_bounds() -> None:
    params = torch_side.initial_params(Config())
    weights = [value for name, value in torch_side.network(params).named_parameters() if name.endswith("weight")]
    for layer, weight in zip(params, weights, strict=True):
        bound = weight[0].numel() ** -0.5
        for name in ("kernel", "bias"):
            values = np.abs(params[layer][name])
            assert values.max() <= bound
            assert values.max() > 0.8 * bound
