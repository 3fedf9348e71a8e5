"""Prints how many bits differ from torch's around the optimizer: averages, clipping, GradScaler. Run by test_around.

Norms are sums in another order: here they are of small integers, whose sums are exact in any.
"""

import json
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_port as optim
from tests import oracle
from tests.exact.harness import differing_bits
from tests.test_clip import make, theirs
from tests.test_grad_scaler import OPTIONS, PATTERN, torch_run
from tests.test_swa_utils import AVERAGES, differences, torch

Pairs = Iterator[tuple[Any, np.ndarray]]  # ours and torch's
DTYPES = ("float32", "float64", "bfloat16", "complex64")


def clipping(dtype: str, norm_type: float) -> Pairs:
    drawn = np.random.default_rng(0).integers(-9, 9, (3, 50))
    kind = make("bfloat16")[0].dtype if dtype == "bfloat16" else np.dtype(dtype)
    grads = [g.astype(kind) for g in drawn]
    for max_norm in (0.7, 1e6):
        total, expected = theirs(torch.nn.utils.clip_grad_norm_, grads, max_norm, norm_type)
        actual, norm = jax.jit(lambda grads, c=max_norm: optim.clip_grad_norm(grads, c, norm_type))(grads)
        yield from zip([norm, *actual], [oracle.to_numpy(total), *expected], strict=True)


def values(dtype: str) -> Pairs:
    grads = make(dtype)
    _, expected = theirs(torch.nn.utils.clip_grad_value_, grads, 0.3)
    yield from zip(jax.jit(optim.clip_grad_value)(grads, 0.3), expected, strict=True)


def scaling() -> Pairs:
    scaler, optimizer = optim.GradScaler(**OPTIONS), optim.adam(lr=0.1)
    params = {"w": jnp.ones(3)}

    @jax.jit
    def step(params: Any, state: Any, scaling: Any, g: Any) -> Any:
        grads = {"w": g * scaler.scale(scaling, jnp.ones(()))}
        params, state, found_inf = scaler.step(optimizer, scaling, grads, state, params, None)
        return params, state, scaler.update(scaling, found_inf)

    carry = params, optimizer.init(params), scaler.init()
    for g, (scale, _, p, _) in zip(PATTERN, torch_run(PATTERN, OPTIONS), strict=True):
        carry = step(*carry, jnp.array(g))
        yield carry[0]["w"], p
        yield carry[2].scale, np.asarray(scale, np.float32)


def main() -> None:
    oracle.one_thread()
    oracle.ieee_sqrt()
    found = {}

    def compare(label: str, pairs: Pairs) -> None:
        bits = [differing_bits(np.asarray(a), np.asarray(e))[0] for a, e in pairs]
        found[label] = {"values": len(bits), "bits": sum(bits)}

    for dtype in DTYPES:
        with jax.enable_x64(dtype == "float64"):
            for average in AVERAGES:
                compare(f"{average} {dtype}", differences(average, dtype, use_buffers=average != "swa_multi"))
            for norm_type in (2.0, 1.0, float("inf")) if dtype != "complex64" else (float("inf"),):
                compare(f"clip_grad_norm {norm_type} {dtype}", clipping(dtype, norm_type))
            if dtype != "complex64":
                compare(f"clip_grad_value {dtype}", values(dtype))
    compare("GradScaler and Adam", scaling())
    print(json.dumps(found))


if __name__ == "__main__":
    main()
