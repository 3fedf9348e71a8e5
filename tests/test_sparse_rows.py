"""Row-sparse gradients of SGD and Adagrad, and how a model makes them, against torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.sparse import BCOO

import jaxopt_port as optim

pytestmark = pytest.mark.usefixtures("full_precision")
ROWS, WIDTH = 6, 3
CONFIGURATIONS = [
    ("sgd", {"lr": 0.1}),
    ("sgd", {"lr": 0.1, "momentum": 0.9}),
    ("sgd", {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "maximize": True}),
    ("sgd", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    ("adagrad", {"lr": 0.1}),
    ("adagrad", {"lr": 0.1, "lr_decay": 0.1, "initial_accumulator_value": 0.2, "maximize": True}),
]


@pytest.mark.parametrize(("name", "options"), CONFIGURATIONS, ids=str)
def test_torchs_numbers(name, options):
    """Other rows in every step, some of them twice; those that never had a gradient keep their bits."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    table = rng.normal(size=(ROWS, WIDTH)).astype(np.float32)
    weight = torch.nn.Parameter(torch.from_numpy(table.copy()))
    theirs = {"sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad}[name]([weight], **options)
    optimizer, ours = optim.optimizers[name](**options), jnp.asarray(table)
    step, state = jax.jit(optimizer.step), optimizer.init(ours)
    for _ in range(5):
        index = rng.choice(ROWS - 1, size=(4, 1)).astype(np.int32)
        data = rng.normal(size=(4, WIDTH)).astype(np.float32)
        # coalesced, since torch adds rows that appear twice one after the other, and rounds twice
        weight.grad = torch.sparse_coo_tensor(index.T, torch.from_numpy(data), table.shape).coalesce()
        theirs.step()
        ours, state = step(BCOO((jnp.asarray(data), jnp.asarray(index)), shape=table.shape), state, ours)
    np.testing.assert_allclose(ours, weight.detach().numpy(), 1e-6, 1e-7)
    np.testing.assert_array_equal(ours[-1], table[-1])


@pytest.mark.parametrize("name", ["sgd", "adagrad"])
def test_weight_decay_is_refused(name):
    table, grads = jnp.ones((4, 2)), BCOO((jnp.ones((1, 2)), jnp.array([[1]])), shape=(4, 2))
    optimizer = optim.optimizers[name](weight_decay=0.1)
    with pytest.raises(RuntimeError, match="weight_decay option is not compatible with sparse gradients"):
        optimizer.step(grads, optimizer.init(table), table)
    optimizer = optim.optimizers[name]()
    state = optim.set_hyper(optimizer.init(table), weight_decay=0.1)
    new, _ = jax.jit(optimizer.step)(grads, state, table)  # under jit nobody can look: not a number, and no wrong one
    assert np.isnan(new[1]).all()


@pytest.mark.parametrize("name", ["sgd", "adagrad", "sparse_adam"])
def test_a_model_with_an_embedding(name):
    """The recipe of docs/sparse-gradients.md, beside torch.nn.Embedding(sparse=True)."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    table, kernel = (rng.normal(size=shape).astype(np.float32) for shape in ((10, 3), (3, 1)))
    tokens = np.array([[1, 4, 4], [7, 1, 9]])
    embedding = torch.nn.Embedding.from_pretrained(torch.from_numpy(table.copy()), freeze=False, sparse=True)
    torch_class = {"sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad, "sparse_adam": torch.optim.SparseAdam}[name]
    theirs = torch_class(embedding.parameters(), lr=0.1)

    def loss_of_rows(rows, kernel):
        return ((rows.mean(1) @ kernel) ** 2).sum()

    optimizer, ours = optim.optimizers[name](lr=0.1), jnp.asarray(table)
    state = optimizer.init(ours)

    @jax.jit
    def train_step(table, state, tokens):
        rows = jax.grad(loss_of_rows)(table[tokens], kernel)
        grad = BCOO((rows.reshape(-1, rows.shape[-1]), tokens.reshape(-1, 1)), shape=table.shape)
        return optimizer.step(grad, state, table)

    for _ in range(3):
        theirs.zero_grad()
        ((embedding(torch.from_numpy(tokens)).mean(1) @ torch.from_numpy(kernel)) ** 2).sum().backward()
        theirs.step()
        ours, state = train_step(ours, state, jnp.asarray(tokens))
    np.testing.assert_allclose(ours, embedding.weight.detach().numpy(), 1e-5, 1e-6)
    np.testing.assert_array_equal(ours[0], table[0])


@pytest.mark.parametrize("name", ["adagrad", "sparse_adam"])
def test_squares_are_rounded_before_they_are_summed(name):
    """Two operations in torch, so that nothing is fused: NumPy's bits, in a process that fuses what it can."""
    rng = np.random.default_rng(0)
    table, optimizer = jnp.zeros((500, 20)), optim.optimizers[name]()
    step, state, expected = jax.jit(optimizer.step), optimizer.init(table), np.zeros((500, 20), np.float32)
    for _ in range(3):
        g = rng.normal(size=table.shape).astype(np.float32)
        table, state = step(BCOO.fromdense(g, nse=len(g), n_dense=1), state, table)
        expected += g * g if name == "adagrad" else (g * g - expected) * np.float32(1 - 0.999)
    np.testing.assert_array_equal(state.slots.sum if name == "adagrad" else state.slots.exp_avg_sq, expected)
