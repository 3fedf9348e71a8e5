"""One optimizer step of each library, on the same arrays, that can be called again and again."""

import time
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental.sparse import BCOO

import jaxopt_port as optim

Tree = Any
Shapes = Sequence[tuple[int, ...]]
OPTIONS: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": 0.9},
    # Every step has its four iterations, at the minimum too.
    "lbfgs": {"max_iter": 4, "history_size": 10, "tolerance_grad": 0.0, "tolerance_change": 0.0},
}
OPTAX: dict[str, Callable[[], optax.GradientTransformation]] = {
    "adadelta": lambda: optax.adadelta(1.0, weight_decay=0.0),
    "adafactor": lambda: optax.adafactor(1e-2),
    "adagrad": lambda: optax.adagrad(1e-2),
    "adam": lambda: optax.adam(1e-3),
    "adamax": lambda: optax.adamax(2e-3),
    "adamw": lambda: optax.adamw(1e-3, weight_decay=1e-2),
    "muon": lambda: optax.contrib.muon(1e-3, weight_decay=0.1),
    "nadam": lambda: optax.nadam(2e-3),
    "radam": lambda: optax.radam(1e-3),
    "rmsprop": lambda: optax.rmsprop(1e-2, decay=0.99),
    "rprop": lambda: optax.rprop(1e-2),
    "sgd": lambda: optax.sgd(1e-3, momentum=0.9),
}
FUSED = ("adagrad", "adam", "adamw", "sgd")
WITHOUT_FOREACH = ("lbfgs", "muon", "sparse_adam")
SPARSE_ROWS = 100  # a gradient of sparse_adam has one row in so many


def draw(shapes: Shapes, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape, np.float32) for shape in shapes]


@lru_cache(maxsize=1)
def gradients(shapes: tuple[tuple[int, ...], ...]) -> list[jax.Array]:
    """Of all contenders: the large models' would not fit into memory eight times."""
    return [jnp.asarray(x) for x in draw(shapes, 1)]


def sparse_rows(shape: tuple[int, ...]) -> np.ndarray:
    return np.arange(0, shape[0], SPARSE_ROWS)


def quartic(params: Iterable[Any], targets: Iterable[Any]) -> Any:
    """What L-BFGS minimizes, for JAX and for torch: convex, and its curvature is another for every element."""
    return sum((p * p * (p * p * 0.25 + 0.5) - target * p).sum() for p, target in zip(params, targets, strict=True))


class JaxStep:
    """A donated, jitted `step(params, state, grads) -> (params, state)`.

    Donated buffers are matched to results by shape, in order: params and state must go in as they come out, or every
    buffer lands in another's place and is copied (4 times slower here).
    """

    def __init__(self, shapes: Shapes, init: Callable[..., Any], step: Callable[..., Any], inside: bool, sparse: bool):
        self.params = [jnp.asarray(x) for x in draw(shapes, 0)]
        self.grads: Any = None if inside else gradients(tuple(shapes))
        if sparse:
            rows = [jnp.asarray(sparse_rows(shape)[:, None]) for shape in shapes]
            self.grads = [
                BCOO((g[at[:, 0]], at), shape=g.shape, indices_sorted=True, unique_indices=True)
                for g, at in zip(self.grads, rows, strict=True)
            ]
        self.state = jax.jit(init)(self.params)

        def whole(params: Tree, state: Tree, grads: Tree) -> tuple[Tree, Tree]:
            return step([p * 0.5 for p in params] if inside else grads, state, params)

        start = time.perf_counter()
        self.compiled = jax.jit(whole, donate_argnums=(0, 1)).lower(self.params, self.state, self.grads).compile()
        self.compile_s = time.perf_counter() - start
        used: Any = self.compiled.memory_analysis()
        self.temporary = used.temp_size_in_bytes / sum(p.nbytes for p in self.params)

    def dispatch(self) -> None:
        self.params, self.state = self.compiled(self.params, self.state, self.grads)

    def wait(self) -> None:
        jax.block_until_ready((self.params, self.state))


class TorchStep:
    """torch's step, in one of its forms."""

    compile_s = temporary = float("nan")

    def __init__(self, name: str, shapes: Shapes, form: str, device: str, inside: bool):
        import torch

        from tests.oracle import optimizer_info  # finds torch's class

        self.torch, self.inside, self.device = torch, inside, device
        self.tensors = [torch.nn.Parameter(torch.from_numpy(x).to(device)) for x in draw(shapes, 0)]
        for tensor, grad in zip(self.tensors, gradients(tuple(shapes)), strict=True):
            shared = device == "cpu" and not inside  # inside they are written
            tensor.grad = torch.from_dlpack(grad) if shared else torch.from_numpy(np.array(grad)).to(device)
            if name == "sparse_adam":
                rows = torch.from_numpy(sparse_rows(tensor.shape)).to(device)
                tensor.grad = torch.sparse_coo_tensor(
                    rows[None], tensor.grad[rows], tensor.shape, check_invariants=False
                )
        flags = {} if name in WITHOUT_FOREACH else {"foreach": form in ("foreach", "compiled")}
        flags |= {"fused": True, "foreach": False} if form in ("fused", "CUDA graph") else {}
        flags |= {"capturable": True} if form == "CUDA graph" else {}
        self.optimizer = optimizer_info(name).optim_cls(self.tensors, **OPTIONS.get(name, {}), **flags)
        self.closure = None
        if name == "lbfgs":
            self.closure, self.targets = self._loss, [tensor.grad for tensor in self.tensors]
        start = time.perf_counter()
        step = self.optimizer.step
        self.step: Callable[..., Any] = torch.compile(step) if form == "compiled" else step
        if form == "CUDA graph":
            self.step = self._captured()
        self.dispatch()
        self.wait()
        if form in ("compiled", "CUDA graph"):
            self.compile_s = time.perf_counter() - start

    def _loss(self) -> Any:
        self.optimizer.zero_grad()
        loss: Any = quartic(self.tensors, self.targets)
        loss.backward()
        return loss

    def _captured(self) -> Callable[..., Any]:
        cuda = self.torch.cuda
        stream = cuda.Stream()
        with cuda.stream(stream):
            for _ in range(3):
                self._make_grads()
                self.optimizer.step()
        cuda.current_stream().wait_stream(stream)
        graph = cuda.CUDAGraph()
        with cuda.graph(graph):
            self._make_grads()
            self.optimizer.step()
        self.inside = False  # they are made in the graph
        return graph.replay

    def _make_grads(self) -> None:
        if self.inside:
            grads = [tensor.grad for tensor in self.tensors]
            with self.torch.no_grad():
                self.torch._foreach_copy_(grads, self.tensors)
                self.torch._foreach_mul_(grads, 0.5)

    def dispatch(self) -> None:
        if self.closure is not None:
            self.step(self.closure)
            return
        self._make_grads()
        self.step()

    def wait(self) -> None:
        if self.device != "cpu":
            self.torch.cuda.synchronize()


def ours(name: str, is_flat: bool) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`init` and `step`."""
    optimizer = optim.optimizers[name](**OPTIONS.get(name, {}))
    if name == "lbfgs":

        def step(grads: Tree, state: Tree, params: Tree) -> tuple[Tree, Tree]:
            return optimizer.step_closure(lambda params: quartic(params, grads), state, params)[1:]

        return optimizer.init, step
    optimizer = optim.flat(optimizer) if is_flat else optimizer
    return optimizer.init, optimizer.step


def of_optax(name: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    optimizer = OPTAX[name]()

    def step(grads: Tree, state: Tree, params: Tree) -> tuple[Tree, Tree]:
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return optimizer.init, step


def limit(add: bool) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """What cannot be beaten: the buffers of AdamW in and out, and with `add` read and written, too."""

    def init(params: Tree) -> Tree:
        return [jnp.zeros_like(p) for p in params], [jnp.zeros_like(p) for p in params]

    def step(grads: Tree, state: Tree, params: Tree) -> tuple[Tree, Tree]:
        if not add:
            return params, state
        first, second, new = ([x + g for x, g in zip(xs, grads, strict=True)] for xs in (*state, params))
        return new, (first, second)

    return init, step


def is_elementwise(name: str) -> bool:
    try:
        optim.flat(optim.optimizers[name]())
    except ValueError:
        return False
    return True


def contenders(name: str, shapes: Shapes, device: str, inside: bool = False) -> dict[str, Callable[[], Any]]:
    """What makes each contender of an optimizer, by its column's name."""

    def jax_step(pair: tuple[Callable[..., Any], Callable[..., Any]]) -> Callable[[], JaxStep]:
        return lambda: JaxStep(shapes, *pair, inside, name == "sparse_adam")

    forms = ["eager"] if name in WITHOUT_FOREACH else ["eager", "foreach"]
    forms += ["fused"] if name in FUSED else []
    if device != "cpu" and name in ("adam", "adamw", "sgd"):
        forms += ["compiled", "CUDA graph"] if name != "sgd" else ["compiled"]
    found: dict[str, Callable[[], Any]] = {"leaves": jax_step(ours(name, False))}
    if is_elementwise(name):
        found["flat"] = jax_step(ours(name, True))
    if name in OPTAX:
        found["optax"] = jax_step(of_optax(name))
    if name == "adamw":
        found |= {"buffers": jax_step(limit(False)), "streams": jax_step(limit(True))}
    found |= {f"torch {form}": lambda form=form: TorchStep(name, shapes, form, device, inside) for form in forms}
    return found
