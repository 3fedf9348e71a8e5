"""Equinox's models, which have torch's layouts under other names: the same outputs, and every bit back."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_port as optim
from jaxopt_port.torch_interop import layout, load_optimizer, optimizer_state_dict

torch = pytest.importorskip("torch")
from tests.torch_interop.convert import arrays  # noqa: E402
from tests.torch_interop.test_layout import draw, randomized  # noqa: E402

KEY = jax.random.key(0)


def check(theirs: Any, ours: Any, *x: np.ndarray, **options: Any) -> tuple[layout.Mapping, Any]:
    """The same output for one example and, back, the same bits."""
    weights = arrays(randomized(theirs).state_dict())
    mapping = layout.infer(weights, ours, **options)
    ours = layout.to_flax(mapping, weights, ours)
    with torch.no_grad():
        expected = theirs(*(torch.from_numpy(each[None]) for each in x))
    expected = (expected[0] if isinstance(expected, tuple) else expected).numpy()[0]
    np.testing.assert_allclose(ours(*map(jnp.asarray, x)), expected, rtol=1e-4, atol=1e-5)
    back = layout.to_torch(mapping, ours)
    assert list(back) == list(weights)
    assert all(back[name].tobytes() == value.tobytes() for name, value in weights.items())
    return mapping, ours


def test_mlp_and_its_optimizer() -> None:
    theirs = torch.nn.Sequential(*(torch.nn.Linear(i, o) for i, o in ((3, 4), (4, 4), (4, 4), (4, 2))))
    mapping, ours = check(theirs, eqx.nn.MLP(3, 2, 4, 3, activation=lambda x: x, key=KEY), draw(3))
    adam = torch.optim.Adam(theirs.parameters())
    theirs(torch.ones(1, 3)).sum().backward()
    adam.step()
    params = eqx.filter(ours, eqx.is_inexact_array)
    optimizer, state = load_optimizer(optim.adam, adam.state_dict(), params, mapping)
    back = optimizer_state_dict(optimizer, state, params, mapping)["state"]
    for i, one in adam.state_dict()["state"].items():
        np.testing.assert_array_equal(back[i]["exp_avg"], one["exp_avg"])


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
def test_convolution(axes: int, groups: int) -> None:
    options: dict[str, Any] = {"kernel_size": 3, "stride": 2, "padding": 1, "groups": groups}
    theirs = getattr(torch.nn, f"Conv{axes}d")(4, 6, **options)
    check(theirs, eqx.nn.Conv(axes, 4, 6, **options, key=KEY), draw(4, *range(5, 5 + axes)))


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("features", [4, 6])
def test_transposed_convolution(axes: int, features: int) -> None:
    options: dict[str, Any] = {"kernel_size": 3, "stride": 2, "padding": 1}
    theirs = getattr(torch.nn, f"ConvTranspose{axes}d")(4, features, **options)
    ours = eqx.nn.ConvTranspose(axes, 4, features, **options, key=KEY)
    x = draw(4, *range(4, 4 + axes))
    if features == 4:
        with pytest.raises(ValueError, match=r"layouts=\{'weight': layout.equinox_transposed_convolution\}"):
            check(theirs, ours, x)
        check(theirs, ours, x, layouts={"weight": layout.equinox_transposed_convolution})
    else:
        check(theirs, ours, x)


class Block(eqx.Module):
    embed: Any
    attention: Any
    norm: Any
    dropout: Any

    def __call__(self, x: Any) -> Any:
        x = jax.vmap(self.embed)(x)
        return jax.vmap(self.norm)(self.dropout(self.attention(x, x, x), inference=True))


class TorchBlock(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = torch.nn.Embedding(7, 6)
        self.self_attn = torch.nn.MultiheadAttention(6, 3, batch_first=True)
        self.ln = torch.nn.LayerNorm(6)

    def forward(self, x: Any) -> Any:
        x = self.tokens(x)
        return self.ln(self.self_attn(x, x, x)[0])


def test_attention_embedding_and_norm() -> None:
    attention = eqx.nn.MultiheadAttention(
        3, 6, use_query_bias=True, use_key_bias=True, use_value_bias=True, use_output_bias=True, key=KEY
    )
    ours = Block(eqx.nn.Embedding(7, 6, key=KEY), attention, eqx.nn.LayerNorm(6), eqx.nn.Dropout(0.5))
    check(TorchBlock(), ours, np.array([1, 6, 0, 3]))
