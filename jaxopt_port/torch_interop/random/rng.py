"""torch's CPU random numbers, bit for bit, without torch."""

import math
import struct
from collections.abc import Sequence

import numpy as np

from jaxopt_port.torch_interop.random.box_muller import normal32, normal64
from jaxopt_port.torch_interop.random.fma import fma32, fma64

DEFAULT_SEED = 67280421310721  # torch's, where nobody called manual_seed
RANDINT_64_BITS_FROM = 1 << 28  # numbers to choose from; torch takes 64 random bits then
RANDPERM_END = (2**32 - 1) // 20  # torch has another algorithm for longer permutations

# The words of torch.get_rng_state(): seed, left, seeded, next, 624 words, normal_x, normal_y, normal_rho,
# normal_is_valid, and the float32 partner and its flag, which the CPU's functions do not use.
_STATE = struct.Struct("<QiiQ624Qdddi4xf?3x")

Shape = int | Sequence[int]


class Generator:
    """`torch.Generator().manual_seed(seed)`, or the one that `torch.manual_seed(seed)` seeds: MT19937 on the CPU.

    rand, randint, randperm and the order of data are the same in torch on every CPU. What goes through a * b + c is
    not: torch has a fused multiply-add there on a CPU with AVX2 and none without (`ATEN_CPU_CAPABILITY=default`).
    Off AVX2 float32's normal numbers, 16 or more at a time, come from another algorithm, which is not here; nor are
    ARM's, float16's and bfloat16's numbers, and dropout, whose masks differ between CPU vendors in torch itself.

    Args:
      seed: from -2^63 to 2^64 - 1; a negative one counts from 2^64 down, and only the lowest 32 bits matter.
      avx2: whether torch ran with AVX2.

    Raises:
      ValueError: a seed out of range.

    Example:
      >>> Generator(0).rand(3)  # torch.manual_seed(0); torch.rand(3)
      array([0.4962566 , 0.7682218 , 0.08847743], dtype=float32)

    Source: aten/src/ATen/CPUGeneratorImpl.cpp, core/MT19937RNGEngine.h, core/DistributionsHelper.h,
    native/cpu/DistributionTemplates.h; Matsumoto and Nishimura, Mersenne Twister, 1998.
    """

    def __init__(self, seed: int = DEFAULT_SEED, *, avx2: bool = True):
        if not -(1 << 63) <= seed < 1 << 64:
            raise ValueError(f"seed {seed}: Overflow when unpacking long, must be from -2**63 to 2**64 - 1")
        self._avx2 = avx2
        self._seed = seed % (1 << 64)
        self._bits = np.random.MT19937()
        self._bits._legacy_seeding(self._seed & 0xFFFFFFFF)  # the seeding of 2002, which RandomState(seed) has too
        self._partner: float | None = None  # normal numbers come in pairs; the second one waits here

    def get_state(self) -> np.ndarray:
        """`torch.get_rng_state()`: where the generator is.

        Returns:
          5,056 bytes, uint8, that `torch.set_rng_state` takes.
        """
        twister = self._bits.state["state"]
        at = int(twister["pos"])
        waiting = self._partner is not None
        normal = (0.0, self._partner, 0.0, 1) if waiting else (0.0, 0.0, 0.0, 0)
        words = map(int, twister["key"])
        packed = _STATE.pack(self._seed, 625 - at, 1, at % 624, *words, *normal, 0.0, False)
        return np.frombuffer(packed, np.uint8).copy()

    def set_state(self, state: np.ndarray) -> None:
        """`torch.set_rng_state(state)`: go on where torch was.

        Args:
          state: the 5,056 bytes of `torch.get_rng_state()`.

        Raises:
          ValueError: not such a state.

        Example:
          >>> first, second = Generator(1), Generator(2)
          >>> second.set_state(first.get_state())
          >>> bool(first.rand(()) == second.rand(()))
          True
        """
        if state.dtype != np.uint8 or state.shape != (_STATE.size,):
            raise ValueError(
                f"RNG state must be {_STATE.size} bytes, uint8, as torch.get_rng_state() gives, "
                f"not {list(state.shape)} of {state.dtype}"
            )
        seed, left, seeded, at, *rest = _STATE.unpack(state.tobytes())
        words, (_, partner, _, waiting, _, _) = rest[:624], rest[624:]
        if not seeded or not 1 <= left <= 624 or at > 624 or max(words) >> 32:
            raise ValueError("RNG state is not valid: pass what torch.get_rng_state() gave")
        self._seed = seed
        self._bits.state = {
            "bit_generator": "MT19937",
            "state": {"key": np.array(words, np.uint32), "pos": 624 if left == 1 else at},
        }
        self._partner = partner if waiting else None

    def rand(self, shape: Shape, dtype: type = np.float32) -> np.ndarray:
        """`torch.rand(shape)`: uniform in [0, 1), 24 bits of one word in float32, 53 bits of two in float64.

        Args:
          shape: of the array, a whole number or several.
          dtype: float32 or float64.

        Returns:
          An array of the shape and dtype.

        Raises:
          ValueError: another dtype.
        """
        return self.uniform(shape, dtype=dtype)

    def uniform(self, shape: Shape, a: float = 0.0, b: float = 1.0, dtype: type = np.float32) -> np.ndarray:
        """`torch.empty(shape).uniform_(a, b)`.

        Args:
          shape: of the array, a whole number or several.
          a: the least value.
          b: the bound above; rounding may reach it.
          dtype: float32 or float64.

        Returns:
          An array of the shape and dtype.

        Raises:
          ValueError: a > b, or another dtype.
        """
        kind, n = _checked(dtype), math.prod(_shape(shape))
        if not a <= b:
            raise ValueError(f"uniform_ expects to return a [from, to) range, but found from={a} > to={b}")
        if kind == np.float64:
            x = (self._words64(n) & np.uint64((1 << 53) - 1)).astype(np.float64) * 2.0**-53
            x = fma64(x, b - a, a) if self._avx2 else x * (b - a) + a
        else:
            low, width = np.float32(a), np.float32(b) - np.float32(a)
            x = (self._words(n) & np.uint32((1 << 24) - 1)).astype(np.float32) * np.float32(2.0**-24)
            x = fma32(x, width, low) if self._avx2 else x * width + low
        return x.reshape(shape)

    def normal(self, shape: Shape, mean: float = 0.0, std: float = 1.0, dtype: type = np.float32) -> np.ndarray:
        """`torch.empty(shape).normal_(mean, std)`; with the defaults `torch.randn(shape)`.

        Fewer than 16 numbers are drawn one by one, in float64; 16 or more in blocks of 16, the last 16 again where
        blocks do not fit.

        Args:
          shape: of the array, a whole number or several.
          mean: the mean.
          std: the standard deviation, at least 0.
          dtype: float32 or float64.

        Returns:
          An array of the shape and dtype.

        Raises:
          ValueError: std < 0, or another dtype.
          NotImplementedError: float32, 16 or more, with avx2=False.

        Source: Box and Muller, A Note on the Generation of Random Normal Deviates, 1958.
        """
        kind, n = _checked(dtype), math.prod(_shape(shape))
        if not std >= 0:
            raise ValueError(f"normal expects std >= 0.0, but found std {std}")
        if n < 16:
            unit = np.array([self._one_normal() for _ in range(n)])
            return (fma64(unit, std, mean) if self._avx2 else unit * std + mean).astype(kind).reshape(shape)
        if kind == np.float32 and not self._avx2:
            raise NotImplementedError("torch's float32 normal_ of 16 or more without AVX2: take float64, or avx2=True")
        fill = normal64 if kind == np.float64 else normal32
        x, whole = self.rand(n, dtype), n // 16 * 16
        x[:whole] = fill(x[:whole], mean, std)
        if whole < n:
            x[-16:] = fill(self.rand(16, dtype), mean, std)
        return x.reshape(shape)

    def randint(self, low: int, high: int, shape: Shape) -> np.ndarray:
        """`torch.randint(low, high, shape)`: int64 from low up to high - 1.

        Args:
          low: the least number.
          high: one more than the largest.
          shape: of the array, a whole number or several.

        Returns:
          An int64 array of the shape.

        Raises:
          ValueError: low >= high, or a range that is not within int64.
        """
        if not -(1 << 63) <= low < high <= 1 << 63:
            raise ValueError(f"random_ expects 'from' to be less than 'to', but got from={low} >= to={high}")
        n = math.prod(_shape(shape))
        words = self._words64(n) if high - low >= RANDINT_64_BITS_FROM else self._words(n).astype(np.uint64)
        return ((words % np.uint64(high - low)) + np.uint64(low % (1 << 64))).view(np.int64).reshape(shape)

    def random(self) -> int:
        """`int(torch.empty((), dtype=torch.int64).random_())`: 63 bits, of which torch makes seeds.

        Returns:
          A Python int.
        """
        return int(self._words64(1)[0]) & ((1 << 63) - 1)

    def randperm(self, n: int) -> np.ndarray:
        """`torch.randperm(n)`: the numbers from 0 to n - 1, int64, in random order.

        Args:
          n: how many.

        Returns:
          An int64 array [n].

        Raises:
          ValueError: n is negative, or 214,748,364 or more.

        Example:
          >>> Generator(0).randperm(4)  # torch.manual_seed(0); torch.randperm(4)
          array([0, 1, 3, 2])
        """
        if not 0 <= n < RANDPERM_END:
            raise ValueError(f"n must be non-negative, and below {RANDPERM_END} here, got {n}")
        left = np.arange(n, 1, -1)
        places = np.arange(len(left)) + self._words(len(left)).astype(np.int64) % left
        order = list(range(n))
        for i, j in enumerate(places.tolist()):  # Fisher and Yates
            order[i], order[j] = order[j], order[i]
        return np.array(order, np.int64)

    def _one_normal(self) -> float:
        if self._partner is not None:
            x, self._partner = self._partner, None
            return x
        u, v = (self._words64(2) & np.uint64((1 << 53) - 1)).astype(np.float64) * 2.0**-53
        radius, angle = math.sqrt(-2.0 * math.log1p(-v)), 2.0 * math.pi * u
        self._partner = radius * math.sin(angle)
        return radius * math.cos(angle)

    def _words(self, n: int) -> np.ndarray:
        return self._bits.random_raw(n).astype(np.uint32)

    def _words64(self, n: int) -> np.ndarray:
        high, low = self._bits.random_raw(2 * n).reshape(n, 2).T
        return (high << np.uint64(32)) | low


def data_loader_order(generator: Generator, examples: int, own: bool = False) -> np.ndarray:
    """The order in which the next epoch of torch's `DataLoader(dataset, shuffle=True)` takes the examples.

    Each epoch draws a base seed for workers, though there may be none, and then the seed of the shuffle.

    Args:
      generator: the one that `torch.manual_seed` seeded, or with `own` the loader's; it moves on.
      examples: how many there are, at least 1.
      own: whether the loader was given the generator: `DataLoader(dataset, shuffle=True, generator=generator)`.

    Returns:
      An int64 array [examples].

    Raises:
      ValueError: there are no examples.

    Example:
      >>> generator = Generator(0)
      >>> [data_loader_order(generator, 4).tolist() for _ in range(2)]
      [[2, 1, 3, 0], [0, 1, 3, 2]]

    Source: torch/utils/data/dataloader.py, torch/utils/data/sampler.py.
    """
    if examples < 1:
        raise ValueError(f"num_samples should be a positive integer value, but got num_samples={examples}")
    generator.random()
    if not own:
        return Generator(generator.random()).randperm(examples)
    order = generator.randperm(examples)
    generator.randperm(examples)  # which torch draws too, and takes nothing from
    return order


def _checked(dtype: type) -> np.dtype:
    kind = np.dtype(dtype)
    if kind not in (np.float32, np.float64):
        raise ValueError(f"dtype {kind}: must be float32 or float64")
    return kind


def _shape(shape: Shape) -> Sequence[int]:
    return (shape,) if isinstance(shape, int) else shape
