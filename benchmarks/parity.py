"""How far from torch: one Markdown table, optimizer by optimizer. `python -m benchmarks.parity [--optimizer NAME ...]`.

Ours: differing bits in parameters and state over all comparisons of `tests.exact.compare` (torch's own configurations
and more, 100 and 1,000 steps), and, where bits differ, the largest distance after the last step in eps of the array's
largest number. There torch's square root, which is 1 ulp off for 0.7 % of float32 numbers, is replaced by the IEEE one;
the next columns are the same comparisons with torch as it is. optax: its nearest optimizer with the same
hyper-parameters, torch's configurations again, those that optax can express; the largest |optax - torch| after 100
steps of float64, relative to the largest parameter.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests.exact.compare import CLOSURES

Options = Mapping[str, Any]
STEPS = 100


def _coupled(o: Options, inner: optax.GradientTransformation) -> optax.GradientTransformation:
    return optax.chain(optax.add_decayed_weights(o["weight_decay"]), inner)


def _adam(o: Options) -> optax.GradientTransformation:
    scale = (optax.scale_by_amsgrad if o["amsgrad"] else optax.scale_by_adam)(*o["betas"], eps=o["eps"])
    decay = optax.add_decayed_weights(o["weight_decay"])
    order = (scale, decay) if o.get("decoupled_weight_decay", True) else (decay, scale)  # AdamW has no such option
    return optax.chain(*order, optax.scale(-o["lr"]))


def _sgd(o: Options) -> optax.GradientTransformation | None:
    return None if o["dampening"] else _coupled(o, optax.sgd(o["lr"], o["momentum"] or None, o["nesterov"]))


def _adagrad(o: Options) -> optax.GradientTransformation | None:
    return None if o["lr_decay"] else _coupled(o, optax.adagrad(o["lr"], o["initial_accumulator_value"], o["eps"]))


def _nadam(o: Options) -> optax.GradientTransformation:
    if o["decoupled_weight_decay"]:
        return optax.nadamw(o["lr"], *o["betas"], eps=o["eps"], weight_decay=o["weight_decay"])
    return _coupled(o, optax.nadam(o["lr"], *o["betas"], eps=o["eps"]))


def _radam(o: Options) -> optax.GradientTransformation | None:
    return None if o["decoupled_weight_decay"] else _coupled(o, optax.radam(o["lr"], *o["betas"], eps=o["eps"]))


def _rmsprop(o: Options) -> optax.GradientTransformation:
    known = {"centered": o["centered"], "momentum": o["momentum"] or None, "eps_in_sqrt": False}
    return _coupled(o, optax.rmsprop(o["lr"], o["alpha"], o["eps"], **known))


def _adafactor(o: Options) -> optax.GradientTransformation:
    return optax.adafactor(
        o["lr"],
        min_dim_size_to_factor=1,
        decay_rate=-o["beta2_decay"],
        clipping_threshold=o["d"],
        weight_decay_rate=o["weight_decay"] * o["lr"] or None,
    )


def _muon(o: Options) -> optax.GradientTransformation:
    return optax.contrib.muon(
        o["lr"],
        o["ns_coefficients"],
        o["ns_steps"],
        o["momentum"],
        o["eps"],
        o["weight_decay"],
        nesterov=o["nesterov"],
        consistent_rms=0.2 if o["adjust_lr_fn"] == "match_rms_adamw" else None,
    )


OPTAX: dict[str, tuple[str, Callable[[Options], optax.GradientTransformation | None]]] = {
    "adadelta": ("adadelta", lambda o: _coupled(o, optax.adadelta(o["lr"], o["rho"], o["eps"]))),
    "adafactor": ("adafactor", _adafactor),
    "adagrad": ("adagrad", _adagrad),
    "adam": ("adam, amsgrad", _adam),
    "adamax": ("adamax", lambda o: _coupled(o, optax.adamax(o["lr"], *o["betas"], eps=o["eps"]))),
    "adamw": ("adamw, amsgrad", _adam),
    "muon": ("contrib.muon", _muon),
    "nadam": ("nadam, nadamw", _nadam),
    "radam": ("radam", _radam),
    "rmsprop": ("rmsprop", _rmsprop),
    "rprop": ("rprop", lambda o: optax.rprop(o["lr"], *o["etas"], *o["step_sizes"])),
    "sgd": ("sgd", _sgd),
}


def ours(names: list[str] | None, *flags: str) -> list[dict[str, Any]]:
    """What tests.exact.compare finds, in a process of its own: a record for every comparison."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "records"
        command = [sys.executable, "-m", "tests.exact.compare", "--json", str(path), *flags]
        subprocess.run(command + (["--optimizer", *names] if names else []), stdout=subprocess.DEVNULL, check=False)
        return [json.loads(line) for line in path.read_text().splitlines()]


def nearest_optax(name: str) -> str:
    """optax's optimizer, and how far it is from torch's, as two cells of the table."""
    from tests import oracle

    if name not in OPTAX:
        return "none | |"
    title, make = OPTAX[name]
    defaults = oracle.torch_class(name)([oracle.torch.zeros(2, 2)]).defaults
    rng = np.random.default_rng(0)
    start, grads = rng.standard_normal((20, 30)), rng.standard_normal((STEPS, 20, 30))
    worst, count = 0.0, 0
    configurations = oracle.configurations(name)
    for _, kwargs in configurations:
        given = oracle.options({**defaults, **kwargs})
        transform = make(given)
        if transform is None:
            continue
        if given.get("maximize"):
            transform = optax.chain(optax.scale(-1.0), transform)
        theirs = oracle.trajectory(name, kwargs, start, grads, sparse=False)
        with jax.enable_x64(True):
            apart = np.abs(_run(transform, start, grads) - theirs).max() / np.abs(theirs).max()
        worst, count = max(worst, float(apart)), count + 1
    return f"{title} ({count} of {len(configurations)}) | {worst:.1e} |"


def _run(transform: optax.GradientTransformation, start: np.ndarray, grads: np.ndarray) -> np.ndarray:
    def body(carry: tuple[Any, Any], g: jax.Array) -> tuple[tuple[Any, Any], None]:
        updates, state = transform.update(g, carry[1], carry[0])
        return (optax.apply_updates(carry[0], updates), state), None

    params = jnp.asarray(start)
    carry = (params, transform.init(params))
    return np.asarray(jax.jit(lambda carry, grads: jax.lax.scan(body, carry, grads))(carry, jnp.asarray(grads))[0][0])


def main() -> None:
    import jaxopt_port
    from tests import oracle

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimizer", nargs="+")
    names = parser.parse_args().optimizer
    patched, plain = ours(names), ours(names, "--torchs-sqrt")
    oracle.one_thread()
    print("| optimizer | comparisons | numbers | differing bits, float32 | float64 | apart, eps | ", end="")
    print("from torch as it is, float32 | float64 | apart, eps | ", end="")
    print("nearest in optax (configurations) | optax from torch |")
    print("|---" * 11 + "|")
    for name in names or [each for each in jaxopt_port.optimizers if each not in CLOSURES]:
        mine, as_it_is = ([r for r in records if r["optimizer"] == name] for records in (patched, plain))
        counts = f"{len(mine)} | {sum(r['values'] for r in mine):,}"
        print(f"| {name} | {counts} | {_cells(mine)} | {_cells(as_it_is)} | {nearest_optax(name)}", flush=True)


def _cells(records: list[dict[str, Any]]) -> str:
    """Differing bits in both dtypes, and how far apart the ends are."""
    bits = {d: sum(r["bits"] for r in records if r["dtype"] == d) for d in ("float32", "float64")}
    apart = {d: max(r["distance"] for r in records if r["dtype"] == d) for d in bits}
    worst = ", ".join(f"{apart[d]:.2g} ({d})" for d in bits if bits[d]) or "0"
    return f"{bits['float32']:,} | {bits['float64']:,} | {worst}"


if __name__ == "__main__":
    main()
