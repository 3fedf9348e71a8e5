"""torch's modules in flax's trees: the same outputs, and every bit back."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxopt_port.torch_interop import layout

torch = pytest.importorskip("torch")
from tests.torch_interop.convert import arrays, tensors  # noqa: E402

EPS = 1e-5  # torch's default in every norm; flax's LayerNorm has another


def randomized(module: Any) -> Any:
    """The module with random weights and statistics."""
    generator = torch.Generator().manual_seed(1)
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator) - (0 if name.endswith("var") else 0.5))
    return module.eval()


def check(theirs: Any, ours: nn.Module, x: np.ndarray, channels_last: bool = True, **options: Any) -> layout.Mapping:
    """The same output and, back, the same bits."""
    randomized(theirs)
    flax_x = np.moveaxis(x, 1, -1) if channels_last else x
    variables = jax.eval_shape(ours.init, jax.random.key(0), flax_x)
    weights = arrays(theirs.state_dict())
    mapping = layout.infer(weights, variables, **options)
    filled = layout.to_flax(mapping, weights, variables)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x)).numpy()
    actual: Any = jax.jit(ours.apply)(filled, flax_x)
    actual = np.moveaxis(np.asarray(actual), -1, 1) if channels_last else np.asarray(actual)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
    back = layout.to_torch(mapping, filled)
    weights = {name: value for name, value in weights.items() if not name.endswith("num_batches_tracked")}
    assert list(back) == list(weights)
    for name, value in weights.items():
        assert back[name].tobytes() == value.tobytes()
        assert back[name].shape == value.shape
    return mapping


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_linear() -> None:
    check(torch.nn.Linear(3, 4), nn.Dense(4), draw(2, 3), channels_last=False)


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
def test_convolution(axes: int, groups: int) -> None:
    kind = getattr(torch.nn, f"Conv{axes}d")
    ours = nn.Conv(8, (3,) * axes, padding=1, feature_group_count=groups)
    check(kind(4, 8, 3, padding=1, groups=groups), ours, draw(2, 4, *range(5, 5 + axes)))


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize(("name", "features"), [("up_transpose", 4), ("up_transpose", 6), ("upconv", 6)])
def test_transposed_convolution(axes: int, name: str, features: int) -> None:
    kind = getattr(torch.nn, f"ConvTranspose{axes}d")
    network = torch.nn.Sequential(kind(4, features, 3, stride=2, padding=1))
    ours = nn.ConvTranspose(features, (3,) * axes, strides=(2,) * axes, padding=((1, 1),) * axes, name=name)

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return ours.clone(parent=self)(x)

    check(network, Network(), draw(2, 4, *range(4, 4 + axes)))


def test_norms_and_statistics() -> None:
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.BatchNorm(use_running_average=True, epsilon=EPS)(x)
            return nn.GroupNorm(2, epsilon=EPS)(x)

    theirs = torch.nn.Sequential()
    theirs.add_module("BatchNorm_0", torch.nn.BatchNorm2d(4))
    theirs.add_module("GroupNorm_0", torch.nn.GroupNorm(2, 4))
    mapping = check(theirs, Network(), draw(2, 4, 3, 3))
    assert [entry.path for entry in mapping.entries if entry.source.name.endswith("running_var")] == ["BatchNorm_0/var"]


def test_embedding_and_layer_norm() -> None:
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return nn.LayerNorm(epsilon=EPS)(nn.Embed(7, 4)(x))

    theirs = torch.nn.Sequential(torch.nn.Embedding(7, 4), torch.nn.LayerNorm(4))
    check(theirs, Network(), np.array([[1, 6], [0, 3]]), channels_last=False)


@pytest.mark.parametrize("bias", [True, False])
def test_attention(bias: bool) -> None:
    class Attention(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = torch.nn.MultiheadAttention(6, 3, bias=bias, batch_first=True)

        def forward(self, x: Any) -> Any:
            return self.attention(x, x, x)[0]

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return nn.MultiHeadDotProductAttention(num_heads=3, use_bias=bias)(x)

    mapping = check(Attention(), Network(), draw(2, 5, 6), channels_last=False)
    if bias:
        assert "attention.in_proj_weight part 2 of 3 [6, 6]" in str(mapping)


def test_flattened_after_a_convolution() -> None:
    class Network(nn.Module):
        first: bool

        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.Conv(4, (3, 3), padding=1)(x)
            x = x.transpose(0, 3, 1, 2) if self.first else x
            return nn.Dense(5)(x.reshape(len(x), -1))

    theirs = torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(4 * 3 * 5, 5))
    x = draw(2, 2, 3, 5)
    with pytest.raises(ValueError, match=r"layouts=\{'2.weight': layout.flattened\(4, HEIGHT, WIDTH\)\}.*= 15"):
        check(theirs, Network(first=False), x)
    check(theirs, Network(first=False), x, layouts={"2.weight": layout.flattened(4, 3, 5)})
    check(theirs, Network(first=True), x, layouts={"2.weight": layout.linear})
    with pytest.raises(ValueError, match="has no counterpart"):
        check(theirs, Network(first=False), x, layouts={"2.weight": layout.flattened(4, 3, 4)})


def test_all_heads_on_a_flattened_convolution() -> None:
    class Heads(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.Conv(4, (3, 3), padding=1, name="conv")(x)
            x = x.reshape(len(x), -1)
            return nn.Dense(6, name="policy")(x) * nn.Dense(1, name="value")(x)

    class TorchHeads(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(2, 4, 3, padding=1)
            self.policy = torch.nn.Linear(4 * 3 * 5, 6)
            self.value = torch.nn.Linear(4 * 3 * 5, 1)

        def forward(self, x: Any) -> Any:
            x = self.conv(x).flatten(1)
            return self.policy(x) * self.value(x)

    flattened = {"policy.weight": layout.flattened(4, 3, 5)}
    with pytest.raises(ValueError, match=r"value.weight .* follows a convolution with 4 channels"):
        check(TorchHeads(), Heads(), draw(2, 2, 3, 5), layouts=flattened)
    check(TorchHeads(), Heads(), draw(2, 2, 3, 5), layouts={"(policy|value).weight": layout.flattened(4, 3, 5)})


@pytest.mark.parametrize("order", ["modules", "sorted", "reversed", "classifier first", "shuffled"])
def test_a_flattened_layer_is_asked_about_in_any_order(order: str) -> None:
    """As AlexNet names its parts: `classifier` sorts before `features`."""

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.Conv(8, (3, 3), padding=1, name="features_2")(nn.Conv(4, (3, 3), padding=1, name="features_0")(x))
            return nn.Dense(5, name="classifier_3")(nn.Dense(16, name="classifier_1")(x.reshape(len(x), -1)))

    theirs = torch.nn.Module()
    theirs.features = torch.nn.Sequential(
        torch.nn.Conv2d(2, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(4, 8, 3, padding=1)
    )
    theirs.classifier = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(8 * 15, 16), torch.nn.ReLU(), torch.nn.Linear(16, 5)
    )
    weights = arrays(theirs.state_dict())
    names = list(weights)
    names = {
        "modules": names,
        "sorted": sorted(names),
        "reversed": names[::-1],
        "classifier first": [name for part in ("classifier", "features") for name in names if name.startswith(part)],
        "shuffled": [names[i] for i in np.random.default_rng(0).permutation(len(names))],
    }[order]
    weights = {name: weights[name] for name in names}
    params = jax.eval_shape(Network().init, jax.random.key(0), jnp.ones((1, 3, 5, 2)))
    with pytest.raises(
        ValueError, match=r"layouts=\{'classifier.1.weight': layout.flattened\(8, HEIGHT, WIDTH\)\} .* 15"
    ):
        layout.infer(weights, params)
    said = {"classifier.1.weight": layout.flattened(8, 3, 5)}
    if order in ("reversed", "shuffled"):  # of which nothing says what comes after what
        said["classifier.3.weight"] = layout.linear
    assert len(layout.infer(weights, params, layouts=said).entries) == 8


class Block(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        y = nn.Conv(self.features, (3, 3), padding=1, use_bias=False)(x)
        y = nn.relu(nn.BatchNorm(use_running_average=True, epsilon=EPS)(y))
        y = nn.Conv(self.features, (3, 3), padding=1, use_bias=False)(y)
        y = nn.BatchNorm(use_running_average=True, epsilon=EPS)(y)
        if x.shape != y.shape:
            x = nn.Conv(self.features, (1, 1), use_bias=False, name="shortcut")(x)
        return nn.relu(x + y)


class TorchBlock(torch.nn.Module):
    def __init__(self, inputs: int, features: int):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(inputs, features, 3, padding=1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(features)
        self.conv2 = torch.nn.Conv2d(features, features, 3, padding=1, bias=False)
        self.bn2 = torch.nn.BatchNorm2d(features)
        self.down = torch.nn.Conv2d(inputs, features, 1, bias=False) if inputs != features else torch.nn.Identity()

    def forward(self, x: Any) -> Any:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.down(x) + self.bn2(self.conv2(y)))


class TorchNetwork(torch.nn.Module):
    """As torchvision names a ResNet: stages of blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1 = torch.nn.Sequential(TorchBlock(4, 4), TorchBlock(4, 4))
        self.layer2 = torch.nn.Sequential(TorchBlock(4, 6), TorchBlock(6, 6))
        self.fc = torch.nn.Linear(6, 3)

    def forward(self, x: Any) -> Any:
        return self.fc(self.layer2(self.layer1(x)).mean((2, 3)))


class Network(nn.Module):
    """As flax names the same by default."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        for features in (4, 4, 6, 6):
            x = Block(features)(x)
        return nn.Dense(3)(x.mean((1, 2)))


def test_layers_of_equal_shapes_are_told_by_their_numbers() -> None:
    x = draw(2, 4, 5, 5)

    class Last(torch.nn.Module):  # so that both have the same axes
        def __init__(self) -> None:
            super().__init__()
            self.net = TorchNetwork()

        def forward(self, x: Any) -> Any:
            return self.net(x)

    mapping = check(Last(), Network(), x)
    found = {entry.source.name: entry.path for entry in mapping.entries}
    assert found["net.layer2.1.conv1.weight"] == "Block_3/Conv_0/kernel"
    assert found["net.layer1.1.bn2.running_mean"] == "Block_1/BatchNorm_1/mean"


class NnxNetwork(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.layers = nnx.List([nnx.Linear(3, 3, rngs=rngs) for _ in range(11)])
        self.norm = nnx.BatchNorm(3, use_running_average=True, epsilon=EPS, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(num_heads=1, in_features=3, decode=False, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, deterministic=True, rngs=rngs)  # has a key and a count, which torch has not

    def __call__(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer(x)
        return self.dropout(self.attention(self.norm(x)))


class TorchOfNnx(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Linear(3, 3) for _ in range(11)])
        self.norm = torch.nn.BatchNorm1d(3)
        self.attention = torch.nn.MultiheadAttention(3, 1, batch_first=True)

    def forward(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer(x)
        x = self.norm(x.flatten(0, 1)).reshape(x.shape)
        return self.attention(x, x, x)[0]


def test_nnx() -> None:
    theirs = randomized(TorchOfNnx())
    graph, state = nnx.split(NnxNetwork(nnx.Rngs(0)))
    weights = arrays(theirs.state_dict())
    mapping = layout.infer(weights, state)
    filled = layout.to_flax(mapping, weights, state)
    x = draw(2, 5, 3)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x)).numpy()
    actual = jax.jit(lambda filled, x: nnx.merge(graph, filled)(x))(filled, x)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
    back = layout.to_torch(mapping, filled)
    assert all(back[name].tobytes() == weights[name].tobytes() for name in back)
    theirs.load_state_dict(tensors(back))  # num_batches_tracked is not needed


def test_what_cannot_be_told_is_listed_and_can_be_said() -> None:
    shapes = {"left.weight": (3, 3), "right.weight": (3, 3), "upconv.weight": (2, 2, 4, 4), "lost.weight": (9,)}
    params = {
        "a": {"kernel": jnp.zeros((3, 3))},
        "b": {"kernel": jnp.zeros((3, 3))},
        "upconv": {"kernel": jnp.zeros((4, 4, 2, 2))},
        "extra": jnp.zeros(5),
    }
    with pytest.raises(ValueError, match="cannot be told") as error:
        layout.infer(shapes, params)
    for text in (
        "'left' (left.weight [3, 3])",
        "'b' (b/kernel [3, 3])",
        "'lost'",
        "'extra'",
        "upconv.weight",
        "mirrored",
    ):
        assert text in str(error.value)

    del shapes["lost.weight"], params["extra"]
    mapping = layout.infer(
        shapes, params, pairs={"left": "b"}, layouts={"upconv.weight": layout.transposed_convolution}
    )
    assert [entry.path for entry in mapping.entries] == ["b/kernel", "a/kernel", "upconv/kernel"]
    with pytest.raises(ValueError, match="pairs names c"):
        layout.infer(shapes, params, pairs={"left": "c"})
    with pytest.raises(ValueError, match="cannot be flax's 'upconv'"):
        layout.infer(shapes, params, pairs={"left": "upconv"})
    wrong = {"left.weight": np.zeros((3, 3)), "right.weight": np.zeros((3, 3)), "upconv.weight": np.zeros((2, 2))}
    with pytest.raises(ValueError, match=r"'upconv.weight' is \[2, 2\], in the mapping \[2, 2, 4, 4\]"):
        layout.to_flax(mapping, wrong, params)
    with pytest.raises(ValueError, match="'kernel' is not in the mapping: infer it with the whole tree"):
        layout.to_flax(mapping, wrong, params["a"])


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("nested", [True, False])
def test_a_tree_with_torchs_own_names(prefix: str, nested: bool) -> None:
    theirs = torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(12)), torch.nn.BatchNorm1d(2))
    weights = {name: value for name, value in arrays(randomized(theirs).state_dict()).items() if "num" not in name}
    tree: dict[str, Any] = {}
    for name, value in weights.items():
        layer, _, array = name.rpartition(".")
        (tree.setdefault(layer, {}) if nested else tree)[array if nested else name] = jnp.asarray(value)
    mapping = layout.infer({prefix + name: value for name, value in weights.items()}, tree)
    back = layout.to_torch(mapping, tree)
    assert list(back) == [prefix + name for name in weights]
    for name, value in weights.items():
        np.testing.assert_array_equal(back[prefix + name], value)


@pytest.mark.parametrize(
    ("kind", "torch_shape", "flax_shape", "axes"),
    [
        (layout.same, (3, 2), (3, 2), (0, 1)),
        (layout.linear, (3, 2), (2, 3), (1, 0)),
        (layout.convolution, (4, 3, 5, 6), (5, 6, 3, 4), (2, 3, 1, 0)),
        (layout.transposed_convolution, (4, 3, 5), (5, 4, 3), (2, 0, 1)),
        (layout.flattened(2, 1, 3), (4, 6), (6, 4), (1, 0)),
        (layout.to_heads, (6, 5), (5, 2, 3), (1, 0, 0)),
        (layout.from_heads, (5, 6), (2, 3, 5), (1, 1, 0)),
        (layout.from_heads, (1, 1), (1, 1, 1), (1, 1, 0)),
    ],
)
def test_which_axis_of_torchs_an_axis_is(kind: Any, torch_shape: Any, flax_shape: Any, axes: tuple[int, ...]) -> None:
    found = kind(torch_shape, flax_shape)
    assert found.torch_axes == axes
    moved = found.to_flax(np.arange(np.prod(torch_shape)).reshape(torch_shape))
    for axis, torch_axis in enumerate(axes):  # along other axes nothing of this one changes
        indices = np.indices(torch_shape)[torch_axis]
        same_along = [other for other in range(len(axes)) if axes[other] != torch_axis]
        along = found.to_flax(indices)
        assert all((along == along.take([0], axis=other)).all() for other in same_along), axis
    assert moved.shape == flax_shape


def test_integers_are_no_weights() -> None:
    params = {"Dense_0": {"kernel": jnp.zeros((2, 3))}}
    mapping = layout.infer({"fc.weight": (3, 2)}, params)
    with pytest.raises(ValueError, match=r"'fc\.weight' is int8, 'Dense_0/kernel' in flax is float32"):
        layout.to_flax(mapping, {"fc.weight": np.ones((3, 2), np.int8)}, params)


def test_tied_weights_on_the_way_back() -> None:
    theirs = torch.nn.Sequential(torch.nn.Embedding(5, 3), torch.nn.Linear(3, 5, bias=False))
    theirs[1].weight = theirs[0].weight
    params = {"embed": {"embedding": jnp.zeros((5, 3))}}
    mapping = layout.infer({"0.weight": (5, 3)}, params)
    params = {"embed": {"embedding": jnp.asarray(draw(5, 3))}}
    back = layout.to_torch(mapping, params, tied={"1.weight": "0.weight"})
    theirs.load_state_dict(tensors(back))  # strict: it has all names
    np.testing.assert_array_equal(theirs[1].weight.detach(), params["embed"]["embedding"])
    with pytest.raises(ValueError, match=r"tied names 2\.weight, known are: 0\.weight"):
        layout.to_torch(mapping, params, tied={"1.weight": "2.weight"})
    with pytest.raises(ValueError, match=r"tied names 0\.weight, of which the mapping has an array of its own"):
        layout.to_torch(mapping, params, tied={"0.weight": "0.weight"})


def test_running_variance_after_training_steps_is_torchs() -> None:
    batches = draw(3, 6, 4)
    theirs, ours = torch.nn.BatchNorm1d(4), nn.BatchNorm(use_running_average=False, momentum=0.9, epsilon=EPS)
    stats: Any = ours.init(jax.random.key(0), batches[0])
    for batch in batches:
        theirs(torch.from_numpy(batch))
        new: Any = ours.apply(stats, batch, mutable=["batch_stats"])[1]
        before, after = stats["batch_stats"]["var"], new["batch_stats"]["var"]
        assert not np.allclose(after, theirs.running_var, rtol=1e-3)  # flax's is the biased one
        stats = {**stats, "batch_stats": {**new["batch_stats"], "var": layout.unbiased_var(before, after, len(batch))}}
        np.testing.assert_allclose(stats["batch_stats"]["var"], theirs.running_var, rtol=1e-5)
        np.testing.assert_allclose(stats["batch_stats"]["mean"], theirs.running_mean, rtol=1e-5, atol=1e-7)
