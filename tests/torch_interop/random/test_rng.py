"""torch's random numbers, bit for bit: values, and the generator's state after them."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxopt_port.torch_interop import Generator, data_loader_order

torch = pytest.importorskip("torch")

AVX2 = torch.backends.cpu.get_cpu_capability() != "DEFAULT"
SEEDS = (0, 1, 42, -1, -(2**63), 2**31, 2**32 + 5, 2**64 - 1)
SIZES = (0, 1, 2, 15, 16, 17, 31, 33, 312, 623, 624, 625, 1000)
DTYPES = ("float32", "float64")
RANGES = ((0.0, 1.0), (-0.1, 0.1), (2.5, 7.1), (-1 / 37**0.5, 1 / 37**0.5), (3.0, 3.0), (-1e-30, 1e30), (0.0, 1e-20))
MOMENTS = ((0.0, 1.0), (1.5, 0.3), (0.0, 0.02), (-100.0, 1e-3), (1.0, 0.0))
BOUNDS = ((0, 2), (-5, 1000), (0, 2**28 - 1), (0, 2**28), (0, 2**40), (-(2**62), 2**62), (-(2**63), 2**63 - 1))


def assert_same(ours: np.ndarray, theirs: Any) -> None:
    theirs = theirs.numpy()
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    assert ours.tobytes() == theirs.tobytes()


def assert_same_state(ours: Generator, theirs: Any) -> None:
    """As what comes next: after 624 words torch's bytes are another description of the same state."""
    copy, other = Generator(avx2=AVX2), torch.Generator()
    copy.set_state(theirs.numpy())
    other.set_state(torch.from_numpy(ours.get_state()))
    expected = ours.get_state()
    np.testing.assert_array_equal(copy.get_state(), expected)
    assert other.get_state().numpy().tobytes()[-48:] == expected.tobytes()[-48:]  # the waiting normal number


def pair(seed: int) -> Generator:
    torch.manual_seed(seed)
    return Generator(seed, avx2=AVX2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_long_mixture(seed: int, dtype: str) -> None:
    ours, kind, type_ = pair(seed), getattr(torch, dtype), getattr(np, dtype)
    for n in SIZES:
        assert_same(ours.rand(n, type_), torch.rand(n, dtype=kind))
        for a, b in RANGES:
            assert_same(ours.uniform(n, a, b, type_), torch.empty(n, dtype=kind).uniform_(a, b))
        for mean, std in MOMENTS if AVX2 or dtype == "float64" or n < 16 else ():
            assert_same(ours.normal(n, mean, std, type_), torch.empty(n, dtype=kind).normal_(mean, std))
        for low, high in BOUNDS:
            assert_same(ours.randint(low, high, n), torch.randint(low, high, (n,)))
        assert_same(ours.randperm(n), torch.randperm(n))
        assert ours.random() == int(torch.empty((), dtype=torch.int64).random_())
        assert_same_state(ours, torch.get_rng_state())


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("seed", [*SEEDS, *range(2, 10)])
def test_each_from_the_seed(seed: int, n: int) -> None:
    if AVX2 or n < 16:
        assert_same(pair(seed).normal(n), torch.randn(n))
    assert_same(pair(seed).normal(n, dtype=np.float64), torch.randn(n, dtype=torch.float64))
    assert_same(pair(seed).uniform(n, -0.3, 0.7), torch.empty(n).uniform_(-0.3, 0.7))
    assert_same(pair(seed).randperm(n), torch.randperm(n))


@pytest.mark.skipif(not AVX2, reason="torch has another algorithm without AVX2")
def test_a_million_normal_numbers() -> None:
    assert_same(pair(5).normal(1_000_003, 0.5, 0.02), torch.empty(1_000_003).normal_(0.5, 0.02))


def test_shapes() -> None:
    assert_same(pair(0).rand(()), torch.rand(()))
    assert_same(pair(0).normal((2, 3, 4), dtype=np.float64), torch.randn(2, 3, 4, dtype=torch.float64))
    assert_same(pair(0).randint(0, 9, (0, 3)), torch.randint(9, (0, 3)))


def test_a_fresh_state_is_torchs_bytes() -> None:
    for seed in SEEDS:
        ours = pair(seed)
        assert_same(ours.get_state(), torch.get_rng_state())
        assert_same(ours.normal(3), torch.randn(3))
        assert_same(ours.get_state(), torch.get_rng_state())


def test_a_torch_run_goes_on_here_and_back() -> None:
    torch.manual_seed(3)
    torch.randn(7)
    ours = Generator(avx2=AVX2)
    ours.set_state(torch.get_rng_state().numpy())
    assert_same(ours.normal(5), torch.randn(5))
    expected = ours.get_state()
    numbers = ours.rand(1000)
    torch.set_rng_state(torch.from_numpy(expected))
    assert_same(numbers, torch.rand(1000))


@pytest.mark.parametrize("examples", [1, 2, 15, 103, 625, 1000])
@pytest.mark.parametrize(("batch", "drop_last"), [(1, False), (8, False), (8, True), (5, True)])
def test_the_order_of_a_data_loader(examples: int, batch: int, drop_last: bool) -> None:
    options: dict[str, Any] = {"batch_size": batch, "shuffle": True, "drop_last": drop_last}
    ours = pair(29)
    loader = torch.utils.data.DataLoader(range(examples), **options)  # pyright: ignore[reportArgumentType]
    for _ in range(3):
        theirs = [x for batch in loader for x in batch.tolist()]
        assert data_loader_order(ours, examples)[: len(theirs)].tolist() == theirs
    assert_same_state(ours, torch.get_rng_state())

    ours, own = Generator(31), torch.Generator().manual_seed(31)
    loader = torch.utils.data.DataLoader(range(examples), generator=own, **options)  # pyright: ignore[reportArgumentType]
    for _ in range(3):
        theirs = [x for batch in loader for x in batch.tolist()]
        assert data_loader_order(ours, examples, own=True)[: len(theirs)].tolist() == theirs
    assert_same_state(ours, own.get_state())


def check_without_avx2() -> None:
    """In a process in which torch runs without AVX2."""
    assert not AVX2
    for dtype in DTYPES:
        test_a_long_mixture(7, dtype)
    with pytest.raises(NotImplementedError, match="float32 normal_ of 16 or more without AVX2"):
        Generator(0, avx2=False).normal(16)


def test_without_avx2() -> None:
    command = [sys.executable, "-c", f"from {__name__} import check_without_avx2 as f; f()"]
    environment = os.environ | {"ATEN_CPU_CAPABILITY": "default"}
    done = subprocess.run(command, env=environment, cwd=Path(__file__).parents[3], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Generator(2**64), "Overflow when unpacking long"),
        (lambda: Generator(0).uniform(3, 2.0, 1.0), r"uniform_ expects to return a \[from, to\) range"),
        (lambda: Generator(0).uniform(3, dtype=np.float16), "dtype float16: must be float32 or float64"),
        (lambda: Generator(0).normal(3, std=-1.0), "normal expects std >= 0.0, but found std -1"),
        (lambda: Generator(0).randint(5, 5, 2), "random_ expects 'from' to be less than 'to', but got from=5 >= to=5"),
        (lambda: Generator(0).randperm(-1), "n must be non-negative"),
        (lambda: Generator(0).set_state(np.zeros(5, np.uint8)), "RNG state must be 5056 bytes"),
        (lambda: Generator(0).set_state(np.zeros(5056, np.uint8)), "RNG state is not valid"),
        (lambda: data_loader_order(Generator(0), 0), "num_samples should be a positive integer value"),
    ],
)
def test_errors(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
