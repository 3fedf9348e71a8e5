"""torch's initial weights, bit for bit, and the generator's state after them."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxopt_port.torch_interop import Generator, init

torch = pytest.importorskip("torch")
from tests.oracle import since  # noqa: E402

nn = torch.nn

pytestmark = [
    pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="torch runs without AVX2"),
    pytest.mark.filterwarnings("ignore:Initializing zero-element tensors"),
]

UNKNOWN: Any = "fan"
SEEDS = (0, 1, 7)
DTYPES = ("float32", "float64")
Ours = Callable[[Generator, type], dict[str, np.ndarray]]

LAYERS: dict[str, tuple[Callable[..., Any], Ours]] = {
    f"linear-{i}-{o}-{bias}": (
        lambda i=i, o=o, bias=bias, **kw: nn.Linear(i, o, bias, **kw),
        lambda g, d, i=i, o=o, bias=bias: init.linear(g, i, o, bias, d),
    )
    for i, o, bias in [(37, 50, True), (37, 50, False), (1, 1, True), (0, 5, True), (5, 0, True), (784, 128, True)]
}
for dimensions in (1, 2, 3):
    for groups in (1, 2):
        kernel = (3, 2, 5)[:dimensions]
        for name, ours in (("Conv", init.conv), ("ConvTranspose", init.conv_transpose)):
            LAYERS[f"{name}{dimensions}d-{groups}"] = (
                lambda c=f"{name}{dimensions}d", k=kernel, n=groups, **kw: getattr(nn, c)(4, 6, k, groups=n, **kw),
                lambda g, d, f=ours, k=kernel, n=groups: f(g, 4, 6, k, n, dtype=d),
            )
LAYERS |= {
    "conv-no-bias": (
        lambda **kw: nn.Conv2d(3, 2, 3, bias=False, **kw),
        lambda g, d: init.conv(g, 3, 2, (3, 3), bias=False, dtype=d),
    ),
    "batch-norm": (lambda **kw: nn.BatchNorm2d(7, **kw), lambda g, d: init.batch_norm(7, d)),
    "layer-norm": (lambda **kw: nn.LayerNorm((7, 2), **kw), lambda g, d: init.layer_norm((7, 2), dtype=d)),
    "layer-norm-no-bias": (
        lambda **kw: nn.LayerNorm(7, bias=False, **kw),
        lambda g, d: init.layer_norm((7,), bias=False, dtype=d),
    ),
}
for rows in (3, 100):
    for padding in (None, 0, -1):
        LAYERS[f"embedding-{rows}-{padding}"] = (
            lambda n=rows, p=padding, **kw: nn.Embedding(n, 5, padding_idx=p, **kw),
            lambda g, d, n=rows, p=padding: init.embedding(g, n, 5, p, d),
        )
for bias in (True, False):
    for add in (True, False):
        for widths in ((None, None), (6, None), (6, 5), (8, 8)):
            LAYERS[f"attention-{bias}-{add}-{widths}"] = (
                lambda b=bias, a=add, w=widths, **kw: nn.MultiheadAttention(
                    8, 2, bias=b, add_bias_kv=a, kdim=w[0], vdim=w[1], **kw
                ),
                lambda g, d, b=bias, a=add, w=widths: init.multihead_attention(g, 8, 2, b, a, *w, dtype=d),
            )


def assert_same(ours: np.ndarray, theirs: Any) -> None:
    theirs = theirs.detach().numpy()
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    assert ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layer", LAYERS)
def test_layers(layer: str, dtype: str) -> None:
    theirs, ours = LAYERS[layer]
    for seed in SEEDS:
        torch.manual_seed(seed)
        generator = Generator(seed)
        weights, state = ours(generator, getattr(np, dtype)), theirs(dtype=getattr(torch, dtype)).state_dict()
        assert list(weights) == list(state)
        for name, weight in weights.items():
            assert_same(weight, state[name])
        assert_same(generator.rand(2), torch.rand(2))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 4), (64, 32), (5, 3, 3, 3), (0, 3)])
@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("uniform", ()),
        ("uniform", (-2.0, 3.0)),
        ("normal", ()),
        ("normal", (1.0, 0.5)),
        ("trunc_normal", ()),
        ("trunc_normal", (0.0, 0.02)),
        ("trunc_normal", (0.0, 1.0, -1.0, 0.5)),
        ("trunc_normal", (0.1, 0.3, -0.1, 0.2)),
        ("xavier_uniform", ()),
        ("xavier_uniform", (5 / 3,)),
        ("xavier_normal", ()),
        ("xavier_normal", (2.0,)),
        ("kaiming_uniform", ()),
        ("kaiming_uniform", (0.3, "fan_out")),
        ("kaiming_uniform", (0.0, "fan_in", "tanh")),
        ("kaiming_normal", ()),
        ("kaiming_normal", (0.0, "fan_out", "relu")),
    ],
)
def test_functions(name: str, args: tuple[Any, ...], shape: tuple[int, ...], dtype: str) -> None:
    if name == "trunc_normal":
        since(2, 13)
    for seed in SEEDS:
        torch.manual_seed(seed)
        generator, theirs = Generator(seed), torch.empty(shape, dtype=getattr(torch, dtype))
        getattr(nn.init, f"{name}_")(theirs, *args)
        assert_same(getattr(init, name)(generator, shape, *args, dtype=getattr(np, dtype)), theirs)
        assert_same(generator.rand(2), torch.rand(2))


@pytest.mark.parametrize("nonlinearity", ["linear", "conv2d", "conv_transpose3d", "sigmoid", "tanh", "relu", "selu"])
def test_gains(nonlinearity: Any) -> None:
    assert init.calculate_gain(nonlinearity) == nn.init.calculate_gain(nonlinearity)


@pytest.mark.parametrize("slope", [None, 0, 1, 0.2, 5**0.5])
def test_leaky_gain(slope: float | None) -> None:
    assert init.calculate_gain("leaky_relu", slope) == nn.init.calculate_gain("leaky_relu", slope)


TUTORIAL = """
import sys
sys.modules["torch"] = None  # whoever imports it fails
import numpy as np
from jaxopt_port.torch_interop import Generator, data_loader_order, init

generator = Generator(0)
layers = [init.conv(generator, i, o, (5, 5)) for i, o in ((3, 32), (32, 32), (32, 64))]
layers += [init.linear(generator, i, o) for i, o in ((1024, 64), (64, 10))]
arrays = {f"{at}.{name}": x for at, layer in enumerate(layers) for name, x in layer.items()}
np.savez(sys.argv[1], **arrays, order=np.stack([data_loader_order(generator, 10_000) for _ in range(2)]))
"""


def test_the_tutorial_network_and_its_order_in_a_process_without_torch(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", TUTORIAL, str(tmp_path / "ours.npz")], check=True)
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(i, o, 5, padding=2) for i, o in ((3, 32), (32, 32), (32, 64))]
    model = nn.ModuleList([*convolutions, nn.Linear(1024, 64), nn.Linear(64, 10)])
    loader = torch.utils.data.DataLoader(range(10_000), batch_size=100, shuffle=True)  # pyright: ignore
    with np.load(tmp_path / "ours.npz") as ours:
        assert set(ours.files) == {*model.state_dict(), "order"}
        for name, weight in model.state_dict().items():
            assert_same(ours[name], weight)
        for epoch in range(2):
            assert_same(ours["order"][epoch], torch.cat(list(loader)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: init.xavier_uniform(g, (3,)), "Fan in and fan out can not be computed for tensor with fewer than 2"),
        (lambda g: init.kaiming_uniform(g, (3, 3), mode=UNKNOWN), "Mode fan not supported, please use one of"),
        (lambda g: init.kaiming_normal(g, (3, 3), nonlinearity="gelu"), "Unsupported nonlinearity gelu"),
        (lambda g: init.calculate_gain("leaky_relu", True), "negative_slope True not a valid number"),
        (lambda g: init.conv(g, 3, 4, (3,), groups=2), "in_channels must be divisible by groups, got 3 and 2"),
        (lambda g: init.conv_transpose(g, 4, 3, (3,), groups=2), "out_channels must be divisible by groups"),
        (lambda g: init.conv(g, 4, 4, (3,), groups=0), "groups must be a positive integer"),
        (lambda g: init.embedding(g, 3, 2, padding_idx=3), "Padding_idx must be within num_embeddings"),
        (lambda g: init.multihead_attention(g, 8, 3), "embed_dim must be divisible by num_heads"),
    ],
)
def test_errors(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(Generator(0))


def test_what_is_not_reproduced_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="30 % is needed"):
        init.trunc_normal(Generator(0), (3, 3), a=2.0, b=3.0)
