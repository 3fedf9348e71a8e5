"""What `follow` says of a fault, beyond stage, parameter and step: options, groups, shapes, the code between layers."""

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest

import jaxopt_port as optim
from jaxopt_port import compare

torch = pytest.importorskip("torch")
from tests.compare import torch_side  # noqa: E402

pytestmark = pytest.mark.usefixtures("full_precision")
STEPS = 3


class TorchNet(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = torch.nn.Linear(5, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 3)

    def forward(self, x: Any) -> Any:
        return self.b(self.norm(self.a(x)))


class Net(nn.Module):
    between: float = 1.0  # a factor between the first two layers
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Dense(8, dtype=self.dtype, name="a")(x) * self.between
        x = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, dtype=self.dtype, name="norm")(x)
        return nn.Dense(3, dtype=self.dtype, name="b")(x)


def recorded(path: Path, make: Any, clip: float = 0.0) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = TorchNet()
    torch_side.record_classifier(model, make(model), path, STEPS, clip)


def followed(path: Path, optimizer: Any, net: Any = None, **more: Any) -> compare.Followed:
    net = net or Net()
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((1, 5))))["params"]

    def loss_fn(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        logits = net.apply({"params": params}, x).astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    return compare.follow(path, loss_fn, shapes, optimizer, **more)


def sgd(model: Any) -> list[Any]:
    return [torch.optim.SGD(model.parameters(), lr=0.1)]


def test_what_moments_begin_with_is_the_ports_own(tmp_path: Path) -> None:
    """torch's Adagrad has a state before its first step: it is no port's."""
    recorded(tmp_path / "run", lambda model: [torch.optim.Adagrad(model.parameters(), lr=0.01)])
    assert followed(tmp_path / "run", optim.adagrad(lr=0.01)).ok
    wrong = followed(tmp_path / "run", optim.adagrad(lr=0.01, initial_accumulator_value=0.1)).blamed
    assert wrong is not None
    assert (wrong.stage, wrong.step) == ("update", 1)
    assert wrong.why == "initial_accumulator_value is 0.1, torch's 0"
    optaxs = followed(tmp_path / "run", optax.adagrad(0.01)).blamed  # which raised
    assert optaxs is not None
    assert (optaxs.stage, optaxs.step) == ("update", 1)
    assert followed(tmp_path / "run", optax.adagrad(0.01, initial_accumulator_value=0.0, eps=1e-10)).ok


def test_decoupled_decay_is_named_where_there_is_a_decay(tmp_path: Path) -> None:
    recorded(tmp_path / "run", lambda model: [torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=0.1)])
    wrong = followed(tmp_path / "run", optim.adamw(lr=0.01, weight_decay=0.1)).blamed
    assert wrong is not None
    assert wrong.why == "decoupled_weight_decay is True, torch's False"
    recorded(tmp_path / "none", lambda model: [torch.optim.Adam(model.parameters(), lr=0.01)])
    same = followed(tmp_path / "none", optim.adamw(lr=0.01, weight_decay=0.0))
    assert same.ok
    assert not any("decoupled" in note for note in same.notes)


def test_an_option_of_lbfgs_is_no_fault_of_the_gradient(tmp_path: Path) -> None:
    recorded(tmp_path / "run", lambda model: [torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=3)])
    wrong = followed(tmp_path / "run", optim.lbfgs(lr=0.5, max_iter=3, history_size=1)).blamed
    assert wrong is not None
    assert (wrong.stage, wrong.why) == ("update", "history_size is 1, torch's 100")
    with pytest.raises(TypeError, match=r"calls a closure several times a step: follow it with optim\.lbfgs"):
        followed(tmp_path / "run", optax.lbfgs())


def test_muon_in_a_partition(tmp_path: Path) -> None:
    """Its options are read in the state; rows for columns are no rate."""

    def make(model: Any) -> list[Any]:
        matrices = [p for p in model.parameters() if p.ndim == 2]
        rest = [p for p in model.parameters() if p.ndim == 1]
        return [torch.optim.Muon(matrices, lr=0.02), torch.optim.SGD(rest, lr=0.01)]

    def port(**options: Any) -> Any:
        return optax.partition(
            {"muon": optim.muon(**{"lr": 0.02, "weight_dimension_numbers": (0, 1), **options}), "sgd": optim.sgd(0.01)},
            lambda params: jax.tree.map(lambda p: "muon" if p.ndim == 2 else "sgd", params),
        )

    recorded(tmp_path / "run", make)
    assert followed(tmp_path / "run", port()).ok
    assert "lr is 0.03, torch's 0.02" in followed(tmp_path / "run", port(lr=0.03)).verdict
    assert "momentum is 0.5, torch's 0.95" in followed(tmp_path / "run", port(momentum=0.5)).verdict
    wrong = followed(tmp_path / "run", port(weight_dimension_numbers=None)).blamed
    assert wrong is not None
    assert (wrong.stage, wrong.parameter, wrong.step) == ("update", "a.weight", 1)
    assert "rows for columns, as flax's kernels lie: muon(weight_dimension_numbers=(0, 1))" in wrong.why


def test_a_rate_of_another_group(tmp_path: Path) -> None:
    def make(model: Any) -> list[Any]:
        groups = [{"params": [model.a.weight, model.b.weight]}, {"params": [model.a.bias, model.b.bias], "lr": 0.2}]
        return [torch.optim.SGD([*groups, {"params": model.norm.parameters()}], lr=0.1)]

    recorded(tmp_path / "run", make)
    biases = optim.ParamGroup(lambda path, p: path in ("a/bias", "b/bias"), lr=0.2)
    chained = optax.chain(optax.identity(), optim.sgd(lr=0.1, param_groups=[biases]))
    assert followed(tmp_path / "run", chained).ok
    biases = optim.ParamGroup(lambda path, p: path == "b/bias", lr=0.2)
    wrong = followed(tmp_path / "run", optax.chain(optax.identity(), optim.sgd(lr=0.1, param_groups=[biases]))).blamed
    assert wrong is not None
    assert (wrong.stage, wrong.parameter, wrong.step) == ("update", "a.bias", 1)
    assert wrong.why == "its step is 0.5 times torch's: 0.1 is another torch group's rate, its own is 0.2"


def test_clipping_by_value_is_called_so(tmp_path: Path) -> None:
    recorded(tmp_path / "run", sgd, clip=0.01)
    assert followed(tmp_path / "run", optax.chain(optax.clip(0.01), optim.sgd(lr=0.1))).ok
    wrong = followed(tmp_path / "run", optim.sgd(lr=0.1)).blamed
    assert wrong is not None
    assert (wrong.stage, wrong.step) == ("update", 1)
    assert "by value, to 0.01" in wrong.what


def test_the_code_between_two_layers_and_a_coarser_dtype(tmp_path: Path) -> None:
    recorded(tmp_path / "run", sgd)
    wrong = followed(tmp_path / "run", optim.sgd(lr=0.1), Net(between=2.0)).blamed
    assert wrong is not None
    assert (wrong.stage, wrong.layer) == ("loss", "norm")
    assert "in the code between a and norm (LayerNorm): a is right" in wrong.what
    coarse = followed(tmp_path / "run", optim.sgd(lr=0.1), Net(dtype=jnp.bfloat16)).blamed
    assert coarse is not None
    assert (coarse.stage, coarse.layer) == ("loss", "a")
    assert coarse.why == "the port computes in bfloat16, torch in float32"


def test_the_batch_of_another_step_is_called_so(tmp_path: Path) -> None:
    recorded(tmp_path / "run", sgd)
    batches = [step.batches() for step in compare.read(tmp_path / "run").steps]
    wrong = followed(tmp_path / "run", optim.sgd(lr=0.1), batches=[batches[0], batches[2]]).blamed
    assert wrong is not None
    assert (wrong.stage, wrong.step, wrong.why) == ("data", 2, "it is torch's of step 3")


def test_sparse_adam(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Embedding(9, 4, sparse=True)
    optimizer = torch.optim.SparseAdam(model.parameters(), lr=0.1)
    with torch_side.record(model, optimizer, tmp_path / "run") as r:
        for _ in range(STEPS):
            x = torch.randint(0, 9, (4,))
            r.batch(x=x)
            optimizer.zero_grad()
            loss = (model(x) - 1).square().mean()
            r.loss(loss)
            loss.backward()
            optimizer.step()

    def loss_fn(params: Any, x: jax.Array) -> jax.Array:
        return ((params["embedding"][x] - 1) ** 2).mean()

    params = {"embedding": jax.ShapeDtypeStruct((9, 4), jnp.float32)}
    compare.assert_follows(tmp_path / "run", loss_fn, params, optim.sparse_adam(lr=0.1))
    dense = compare.follow(tmp_path / "run", loss_fn, params, optim.sparse_adam(lr=0.1, betas=(0.5, 0.999))).blamed
    assert dense is not None
    assert (dense.stage, dense.step) == ("update", 2)
    assert "betas is (0.5, 0.999), torch's (0.9, 0.999)" in dense.why
