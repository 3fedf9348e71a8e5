"""Why something is off: the hyper-parameter, the factor, the default that explains it."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxopt_port.compare import noise
from jaxopt_port.compare.findings import number
from jaxopt_port.compare.port import Port
from jaxopt_port.compare.trace import Step

Tree = Any
Moved = Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]]  # our step, torch's, and the parameter before

HINTS = ("foreach", "fused", "capturable", "differentiable", "initial_lr")
UNIFORM = 2e-3  # of the whole, that a factor leaves unexplained
SHAPED = 0.2  # the same, of a Muon's step that is worked out from the transposed gradient

# torch's module -> where flax's, jax's and optax's defaults differ from torch's
NORM = ("eps", "1e-5", "1e-6 in linen and nnx: LayerNorm(epsilon=1e-5)")
WELFORD = ("variance", "Welford's", "use_fast_variance=True: another rounding where the mean is large")
GELU = ("GELU", "erf", "jax.nn.gelu and nn.gelu take tanh: approximate=False")
TIES = ("gradient at a tie", "relu(0) 0, abs(0) 0, max_pool the first", "jnp.maximum and clip 0.5, abs 1")
CONV = (
    ("padding", "0", "SAME"),
    ("padding=1 at stride 2", "one on either side", "SAME pads even sizes on one side only: padding=1"),
)
ATTENTION = (
    ("layout", "sequence first (batch_first=False)", "batch first"),
    ("mask", "True leaves out", "True keeps"),
)
LSTM = (
    ("gates", "i f g o in one weight, two biases", "a kernel a gate, one bias: it moves once where torch's two move"),
)
DEFAULTS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "LayerNorm": (NORM, WELFORD),
    "GroupNorm": (NORM, WELFORD),
    "RMSNorm": (("eps", "None: 1.19e-7 of float32", "1e-6"),),
    "BatchNorm": (
        ("momentum", "0.1, the weight of the new", "0.99 of the old; 0.9 is torch's 0.1"),
        ("running variance", "unbiased, n - 1", "biased, n: torch_interop.layout.unbiased_var"),
        ("mode", "train() and eval()", "use_running_average; nnx: active until .eval()"),
        WELFORD,
    ),
    "GELU": (GELU,),
    "PReLU": (("slope", "0.25", "0.01"),),
    "Conv": CONV,
    "ConvTranspose": (
        ("padding", "full, less padding on either side", "SAME"),
        ("kernel", "(in, out, ...)", "flipped: layout.transposed_convolution"),
    ),
    "MaxPool": (("stride", "the kernel's", "1: strides="), ("ceil_mode", "False", "SAME is ceil"), TIES),
    "AvgPool": (("stride", "the kernel's", "1: strides="), ("padding", "counted", "count_include_pad=True")),
    "MultiheadAttention": (("init", "xavier", "lecun"), *ATTENTION),
    "LSTM": LSTM,
    "GRU": (("gates", "r z n, two biases", "one bias but for hn"),),
    "Embedding": (
        ("init", "N(0, 1)", "std 1/sqrt(features)"),
        ("index out of range", "an error", "NaN, or the last row"),
    ),
    "Linear": (
        ("weight", "(out, in)", "(in, out): a square one is transposed unseen"),
        ("after a convolution", "flattened C H W", "flattened H W C: layout.flattened"),
        ("bias", "True", "use_bias=True"),
        ("attention", "1/sqrt(size of a head)", "the same in jax.nn and linen"),
        GELU,
        TIES,
    ),
    "Dropout": (("mode", "off in eval()", "deterministic=True; nnx: active until .eval()"),),
    "Upsample": (("antialias", "no", "jax.image.resize: antialias=True"), ("nearest", "nearest", "nearest-exact")),
    "loss": (
        ("reduction", "mean", "optax's losses are per example: .mean()"),
        ("cross_entropy's ignored labels", "-100", "NaN in optax: mask by hand"),
        ("mse", "the square", "optax.l2_loss is half of it"),
        ("huber, smooth_l1", "smooth_l1_loss(beta)", "huber_loss(delta): beta times it"),
        ("kl_div", "mean over all", "per row, as batchmean"),
        ("std, var", "n - 1", "n: ddof=1"),
    ),
    "optimizer": (
        ("AdamW's weight decay", "1e-2", "1e-4 in optax"),
        ("Adam(weight_decay), SGD(weight_decay)", "L2, before the moments", "optax.adamw decouples"),
        ("eps", "after the root", "the same; eps_root is inside"),
        ("RMSprop", "alpha 0.99, eps outside", "decay 0.9, eps inside"),
        ("Adagrad", "starts at 0, eps 1e-10", "starts at 0.1, eps 1e-7"),
        ("clip_grad_norm_", "/ (norm + 1e-6)", "/ norm"),
        ("accumulation", "a sum", "optax.MultiSteps averages"),
        ("no gradient (None)", "the parameter is skipped", "zeros decay it and move its moments"),
    ),
}


def defaults(module: str | None) -> tuple[tuple[str, str, str], ...]:
    """The defaults that differ for a kind of module: what, torch's, the other's."""
    if module is None:
        return ()
    known = [name for name in DEFAULTS if module.lower().startswith(name.lower())]
    return DEFAULTS[max(known, key=len)] if known else ()


def factor(ours: list[np.ndarray], torchs: list[np.ndarray], batch: Mapping[str, Any]) -> str:
    """The one factor by which all of ours differ from torch's, if there is one."""
    a = np.concatenate([np.asarray(x).ravel() for x in ours]).astype(np.complex128)
    b = np.concatenate([np.asarray(x).ravel() for x in torchs]).astype(np.complex128)
    if not (np.isfinite(a).all() and np.isfinite(b).all()) or not np.abs(b).any():
        return "" if np.isfinite(a).all() else "the port's is not finite"
    c = float((np.vdot(b, a) / np.vdot(b, b)).real)
    rest = float(np.linalg.norm(a - c * b) / (np.linalg.norm(a) + 1e-300))
    if rest > UNIFORM or abs(c - 1) < 5 * UNIFORM or abs(c) < 1e-12:
        return ""
    times = c if abs(c) > 1 else 1 / c
    whole = abs(times - round(times)) < 1e-3 * abs(times)
    if len(a) == 1 and not whole:
        return ""
    text = f"it is torch's {'times' if abs(c) > 1 else 'divided by'} {number(round(times) if whole else times)}"
    sizes = {f"{name}'s {size}": size for name, x in batch.items() for size in np.shape(x)}
    sizes |= {f"{name}'s {np.size(x)} elements": np.size(x) for name, x in batch.items()}
    fits = next((name for name, size in sizes.items() if whole and size == round(times)), None)
    if fits:
        return f"{text}, as a {'sum' if abs(c) > 1 else 'mean'} over {fits} is of torch's"
    return text + (" in every parameter: a sum against a mean, or clipping" if len(a) > 1 else "")


def kind(port: Port, name: str) -> str:
    """torch's optimizer of a parameter."""
    found = (each["kind"] for each in port.trace.optimizers for group in each["groups"] if name in group["names"])
    return next(found, "")


def floor(port: Port, name: str) -> float:
    """How much of its step an update may be off by rounding."""
    return noise.UPDATE.get(kind(port, name), noise.OURS if port.ours else noise.OPTAX)


def options(port: Port, step: Step, name: str) -> dict[str, Any]:
    """torch's options of a parameter at a step."""
    name = port.tied(name)
    for each, hyper in zip(port.trace.optimizers, step.hyper, strict=True):
        for group, found in zip(each["groups"], hyper, strict=False):
            if name in group["names"]:
                return found
    return {}


def rates(port: Port, name: str) -> list[float]:
    """torch's learning rate of a parameter at every step."""
    return [options(port, step, name).get("lr", 0.0) for step in port.trace.steps]


def differing(port: Port, step: Step, mine: Mapping[str, Any], name: str) -> dict[str, tuple[Any, Any]]:
    """The options of a parameter that are ours and torch's, and differ."""
    theirs = options(port, step, name)
    shared = [key for key in theirs if key in mine and key not in HINTS]
    if not (theirs.get("weight_decay") or mine.get("weight_decay")):
        shared = [key for key in shared if key != "decoupled_weight_decay"]  # there is no decay
    return {key: (mine[key], theirs[key]) for key in shared if not _same(mine[key], theirs[key])}


def told(differ: Mapping[str, tuple[Any, Any]]) -> str:
    return ", ".join(f"{key} is {_said(a)}, torch's {_said(b)}" for key, (a, b) in differ.items())


def by_options(port: Port, step: Step, state: Tree, trainable: Tree, name: str) -> tuple[str, str] | None:
    """The options of a parameter that are not torch's, and whether the update or the schedule is to blame."""
    schedule = rates(port, name)
    differ = differing(port, step, (port.hyper(state, trainable) or {}).get(name, {}), name)
    if not differ:
        return None
    if "lr" in differ and len(set(schedule)) > 1:
        return f"{told(differ)}{_shift(schedule, step.number, differ['lr'][0])}", "schedule"
    return told(differ), "update"


def update(port: Port, step: Step, state: Tree, trainable: Tree, name: str, moved: Moved) -> tuple[str, str]:
    """What explains an update that is off, and whether the update or the schedule is to blame.

    Args:
      port: ours.
      step: torch's.
      state: ours, with which the step was taken.
      trainable: the parameters, for the tree.
      name: of the parameter to blame.
      moved: what moved and is off.
    """
    theirs, schedule = options(port, step, name), rates(port, name)
    scheduled = len(set(schedule)) > 1
    named = by_options(port, step, state, trainable, name)
    if named is not None:
        return named
    ours = np.concatenate([a.ravel() for a, _, _ in moved.values()]).astype(np.float64)
    torchs = np.concatenate([b.ravel() for _, b, _ in moved.values()]).astype(np.float64)
    group = {n for n in port.names if options(port, step, n) is theirs} & set(step.frame.header["grad"])
    off = group & moved.keys()
    if not ours.any() and off != group:
        return "the port leaves it as it is: it is frozen there, or in no optimizer", "update"
    c = float(ours @ torchs / (torchs @ torchs)) if torchs.any() else float("inf")
    rest = np.linalg.norm(ours - c * torchs) / (np.linalg.norm(ours) + 1e-300) if np.isfinite(c) else 0.0
    uniform = max(UNIFORM, noise.INEXACT.get(kind(port, port.tied(name)), (0.0, 0.0))[1])
    if scheduled and rest < uniform and 2 * len(off) > len(group):
        rate = c * theirs.get("lr", 0.0)
        text = f"its rate is {number(rate) if np.isfinite(rate) else 'not 0'}, torch's {number(theirs.get('lr', 0.0))}"
        return text + (_shift(schedule, step.number, rate) if np.isfinite(rate) else ""), "schedule"
    if not ours.any():
        return "the port does not move it in this step", "update"
    shape = _shape(port, name, c, theirs) if rest < SHAPED else ""
    if shape:
        return f"its step is {number(c)} times torch's: {shape}", "update"
    if rest < uniform and abs(c - 1) > uniform:
        lr = theirs.get("lr", 0.0)
        text = f"its step is {number(c)} times torch's"
        if c < 0:
            return f"{text}: the sign", "update"
        others = [hyper.get("lr") for found in step.hyper for hyper in found if hyper is not theirs]
        if len(off) < len(group) and any(_near(c * lr, other) for other in others):
            return f"{text}: {number(c * lr)} is another torch group's rate, its own is {number(lr)}", "update"
        return f"{text}: the rate, {number(lr)} in torch", "update"
    if kind(port, name) == "Adafactor" and (factors := port.factored_otherwise(state, step, trainable)):
        return factors, "update"
    return _decay(moved, name, theirs), "update"


def _shape(port: Port, name: str, c: float, theirs: Mapping[str, Any]) -> str:
    """Whether a factor is that of Muon's step for the shape, of a kernel whose rows are torch's columns."""
    shape = next(each["shape"] for each in port.trace.parameters if each["name"] == port.tied(name))
    if kind(port, port.tied(name)) != "Muon" or len(shape) != 2 or theirs.get("adjust_lr_fn") == "match_rms_adamw":
        return ""
    rows, columns = shape
    swapped = (max(1, columns / rows) / max(1, rows / columns)) ** 0.5
    if swapped == 1 or abs(c / swapped - 1) > 0.05:
        return ""
    return "rows for columns, as flax's kernels lie: muon(weight_dimension_numbers=(0, 1))"


def _decay(moved: Moved, name: str, theirs: dict[str, Any]) -> str:
    """The weight decay that explains the difference, where it lies along the parameter."""
    a, b, p = (x.ravel().astype(np.float64) for x in moved[name])
    d, lr = a - b, theirs.get("lr", 0.0)
    if not p.any() or not lr:
        return ""
    along = float(d @ p / (p @ p))
    if np.linalg.norm(d - along * p) > 0.05 * np.linalg.norm(d):
        return ""
    has = theirs.get("weight_decay", 0.0)
    return f"the difference is that of a weight decay of {number(has - along / lr)}, torch's is {number(has)}"


def _shift(schedule: list[float], step: int, rate: float) -> str:
    """At which other step torch has this rate, if it is one that torch's own at the step is far from."""
    near, gap = sorted(range(len(schedule)), key=lambda i: abs(i + 1 - step)), abs(schedule[step - 1] - rate)
    at = next((i + 1 for i in near if abs(schedule[i] - rate) <= 0.05 * gap and i + 1 != step), None)
    return "" if at is None or not 0 < abs(at - step) < 100 else f": torch's at step {at}, {abs(at - step)} off"


def statistic(ours: np.ndarray, torch: np.ndarray, before: np.ndarray) -> str:
    """What explains a running statistic that is off."""
    mine, theirs = (ours - before).ravel().astype(np.float64), (torch - before).ravel().astype(np.float64)
    if not mine.any():
        return "the port's does not move: loss_fn has to return it, (loss, {'batch_stats': ...})"
    c = float(mine @ theirs / (theirs @ theirs)) if theirs.any() else 0.0
    if np.linalg.norm(mine - c * theirs) < 1e-3 * np.linalg.norm(mine):
        return (
            "the variance: torch's running one is unbiased (layout.unbiased_var)"
            if abs(c - 1) < 0.1
            else (f"it moves {number(c)} times as far: the momentum")
        )
    return "the momentum, or the variance: torch's running one is unbiased (layout.unbiased_var)"


def _near(rate: float, other: Any) -> bool:
    return isinstance(other, int | float) and bool(other) and abs(rate / other - 1) < UNIFORM


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, int | float) and isinstance(b, int | float):
        return abs(a - b) <= 1e-6 * max(abs(a), abs(b))
    return a == b


def _said(x: Any) -> str:
    if isinstance(x, list | tuple):
        return f"({', '.join(map(_said, x))})"
    return f"{x:g}" if isinstance(x, float) else str(x)
