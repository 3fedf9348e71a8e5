"""sparse_adam against torch's SparseAdam: duplicate rows, padding, and what a step costs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.sparse import BCOO

import jaxopt_port as optim
from tests.helpers import CountTraces, assert_same_bits

ROWS, WIDTH = 6, 3
BATCHES = [[4, 1, 4], [0], [], [5, 5, 5, 5], [2, 0, 1, 2]]  # the rows of each batch, some of them twice


def values(rows: list[int], step: int) -> np.ndarray:
    return np.random.default_rng(step).normal(size=(len(rows), WIDTH)).astype(np.float32)


def padded(rows: list[int], data: np.ndarray, nse: int = 4) -> BCOO:
    """A gradient with room for `nse` rows: what is left over has an index past the end."""
    indices = np.full((nse, 1), ROWS, np.int32)
    indices[: len(rows), 0] = rows
    wide = np.full((nse, WIDTH), np.nan, np.float32)  # whatever stands there has no effect
    wide[: len(rows)] = data
    return BCOO((jnp.asarray(wide), jnp.asarray(indices)), shape=(ROWS, WIDTH))


@pytest.mark.parametrize("maximize", [False, True])
def test_duplicates_are_summed_and_padding_has_no_effect(maximize: bool):
    torch = pytest.importorskip("torch")
    start = np.random.default_rng(9).normal(size=(ROWS, WIDTH)).astype(np.float32)
    theirs = torch.nn.Parameter(torch.from_numpy(start.copy()))
    reference = torch.optim.SparseAdam([theirs], lr=0.1, maximize=maximize)
    optimizer = optim.sparse_adam(lr=0.1, maximize=maximize)
    ours, step = jnp.asarray(start), CountTraces(optimizer.step)
    state = optimizer.init(ours)
    for number, rows in enumerate(BATCHES):
        data = values(rows, number)
        index = torch.tensor([rows], dtype=torch.int64)
        theirs.grad = torch.sparse_coo_tensor(index, torch.from_numpy(data), (ROWS, WIDTH))
        reference.step()
        ours, state = step(padded(rows, data), state, ours)
        np.testing.assert_allclose(ours, theirs.detach().numpy(), 1e-6, 1e-7)
    for name in ("exp_avg", "exp_avg_sq"):
        np.testing.assert_allclose(getattr(state.slots, name), reference.state[theirs][name].numpy(), 1e-5, 1e-9)
    assert state.steps[0]["step"] == reference.state[theirs]["step"]
    assert step.traces == 1


def test_rows_that_are_absent_keep_their_bits():
    optimizer = optim.sparse_adam(lr=0.1)
    params = jnp.arange(ROWS * WIDTH, dtype=jnp.float32).reshape(ROWS, WIDTH)
    state = optimizer.init(params)
    params, state = optimizer.step(padded([0, 3, 4], values([0, 3, 4], 0)), state, params)
    new, new_state = optimizer.step(padded([3], values([3], 1)), state, params)
    absent = np.array([0, 1, 2, 4, 5])
    kept = jax.tree.map(lambda x: x[absent], (params, state.slots))
    assert_same_bits(jax.tree.map(lambda x: x[absent], (new, new_state.slots)), kept)


def test_a_donated_step_touches_the_present_rows_only():
    """No array of the table's size is made: XLA's plan of the memory is the same for 1,000 rows and for 100,000."""
    optimizer = optim.sparse_adam()

    def temporary(rows: int) -> tuple[int, int]:
        params: Any = jax.ShapeDtypeStruct((rows, 8), jnp.float32)
        data, indices = jax.ShapeDtypeStruct((16, 8), jnp.float32), jax.ShapeDtypeStruct((16, 1), jnp.int32)
        with jax.enable_x64(True):  # eval_shape's float64 would not enter a jit otherwise
            state = jax.eval_shape(optimizer.init, params)

            def step(params, state, data, indices):
                return optimizer.step(BCOO((data, indices), shape=params.shape), state, params)

            compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, data, indices).compile()
        memory = compiled.memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes, memory.output_size_in_bytes - memory.alias_size_in_bytes

    assert temporary(1_000) == temporary(100_000)
