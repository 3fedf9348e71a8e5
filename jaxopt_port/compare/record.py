"""Record a PyTorch training run, to be followed in JAX: `with record(model, optimizer, path) as r:` around the loop.

This file needs NumPy and the standard library alone, and may be copied into a torch project. It imports no torch:
it is handed torch's objects. `jaxopt_port.compare.follow` reads what it writes.

    with record(model, optimizer, "run.trace", full=(1,)) as r:
        r.redo(lambda x, y: criterion(model(x), y), step=1)      # optional: how far torch is from itself
        for x, y in loader:
            r.batch(x=x, y=y)                                     # before the forward pass
            optimizer.zero_grad()
            loss = criterion(model(x), y)
            r.loss(loss)                                          # what backward is called on
            loss.backward()
            optimizer.step()                                      # a step ends where the (last) optimizer steps

**The file** (version 1) is `b"TORCHRUN"`, the version as a uint32, and frames, one after the other:
`b"FRAM"`, the sizes of header and payload (two uint64), the header (JSON), the payload, and a CRC-32 of both (uint32);
all numbers little-endian. A frame is written at once, when its step has ended; what a killed run leaves at the end is
no whole frame, and is left out. `header["arrays"]` lists `[name, dtype, shape]` of the arrays in the payload, in order,
C-contiguous; bfloat16 and float8 are their bits. `header["kind"]` is

- `start`, the first: versions, device, `parameters`, `buffers`, `tied` (other names of a parameter), `modules` with
  their options, `optimizers` with their groups. Arrays: `model/NAME`, `state/NAME/KEY` (where there is a state already)
  and `index/NAME`, which elements are sampled.
- `step`: `step` (from 1), `full`, `losses` (one a batch), `factors` (what backward multiplied each with: 1/k, a
  GradScaler's scale), `hyper` (the groups' options when the step was taken), `no_grad` (names), `grad` and `after` (the
  names whose samples there are). Arrays: `batch/I/NAME`; `sample/grad` and `sample/after`, the sampled elements, one
  tensor after the other, of `after` also the buffers'; `norm/grad`, `norm/after`. In full steps also `before/NAME`,
  `grad/NAME` (what the optimizer saw), `raw/NAME` (what backward left, where clipping changed it), `after/NAME`,
  `state/NAME/KEY` (before the step), `output/MODULE`, `output_grad/MODULE` and, where it is no other module's output,
  `input/MODULE` (of the first batch; a second call is `MODULE#1`); `header["inputs"]` says whose output it is.
- `redo`: `step`, and `apart`: by variant (`float64`, `threads`, for Muon also `bfloat16`) and quantity (`loss`, `grad`,
  `output`, `output_grad`, `after`) the L2 and the largest distance of each tensor from torch's own, relative to it.
"""

import json
import struct
import sys
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

MAGIC, VERSION = b"TORCHRUN", 1
FRAME = struct.Struct("<4sQQ")
SAMPLED = 64  # elements of a parameter in every step
LARGEST_OUTPUT = 64 << 20  # bytes: of a larger output, no more than that it was there
BITS = {"torch.bfloat16": "bfloat16", "torch.float8_e4m3fn": "float8_e4m3fn", "torch.float8_e5m2": "float8_e5m2"}

Tensors = dict[str, Any]
Arrays = dict[str, np.ndarray]


def record(model: Any, optimizer: Any, path: str | Path, full: Iterable[int] = (1,), layers: bool = True) -> "Recorder":
    """A context manager that records what happens inside.

    The start and the steps in `full` are written whole, of the others norms and 64 elements of each parameter; the
    sizes are printed first, and are in `sizes`. Around `torch.compile`, give it the model before the first call.

    Args:
      model: a torch.nn.Module.
      optimizer: a torch.optim.Optimizer, or a list of those that step together; a step ends with the last one's.
        Schedulers, clipping, accumulation and GradScaler need nothing: what they do is seen at the optimizer.
      path: the file; one that is there is replaced.
      full: the steps, from 1, that are recorded whole.
      layers: whether full steps hold every module's output, and its gradient.

    Returns:
      The recorder.

    Raises:
      TypeError: no module, no optimizer.
      ValueError: a step below 1; an optimizer with a parameter that the model does not have.
    """
    return Recorder(model, optimizer, Path(path), full, layers)


@dataclass
class Heard:
    """What a step's first forward and backward pass went through, by module; a second call is `NAME#1`.

    Args:
      inputs: those that are no module's output.
      input_of: whose output it is otherwise.
      outputs: of every module.
      grads: of the outputs.
    """

    inputs: Tensors = field(default_factory=dict)
    input_of: dict[str, str] = field(default_factory=dict)
    outputs: Tensors = field(default_factory=dict)
    grads: Tensors = field(default_factory=dict)


class Recorder:
    """What `record` returns; `sizes` are the bytes of the start, of a full step without its layers, of any other."""

    def __init__(self, model: Any, optimizer: Any, path: Path, full: Iterable[int], layers: bool):
        if not hasattr(model, "named_parameters"):
            raise TypeError(f"model must be a torch.nn.Module, not a {type(model).__name__}")
        self.torch = sys.modules["torch"]
        self.model = getattr(model, "_orig_mod", model)
        self.optimizers = list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer]
        for each in self.optimizers:
            if not hasattr(each, "register_step_post_hook"):
                raise TypeError(f"optimizer must be a torch.optim.Optimizer, or a list, not a {type(each).__name__}")
        self.path, self.full, self.layers = path, set(full), layers
        wrong = [step for step in self.full if step < 1]
        if wrong:
            raise ValueError(f"full has {wrong}: steps are counted from 1")
        self.parameters: Tensors = dict(self.model.named_parameters())
        self.names = {id(p): name for name, p in self.parameters.items()}
        unknown = [i for i, o in enumerate(self.optimizers) for p in _of(o) if id(p) not in self.names]
        if unknown:
            raise ValueError(f"optimizer {unknown[0]} has a parameter that the model does not have: record its model")
        self.step = 0  # how many have ended
        self._redo: dict[int, Callable[..., Any]] = {}
        self._muted = False
        self._handles: list[Any] = []  # of the whole run
        self._full_handles: list[Any] = []  # of a full step
        self._index = {name: self._sampled(name, x) for name, x in self._tensors().items()}
        self._wide = any(x.dtype in (self.torch.float64, self.torch.complex128) for x in self.parameters.values())
        self._snapshot: dict[str, Any] | None = None
        self._file: Any = None  # outside of the block
        self._clear()
        whole = _bytes(self._tensors().values())
        sampled = sum(len(x) for x in self._index.values()) * (8 if self._wide else 4) * 2 + 16 * len(self._index)
        self.sizes = {"start": whole + 8 * sampled // 2, "full": 3 * whole + self._state_bytes(), "sampled": sampled}

    def __enter__(self) -> "Recorder":
        self._file = self.path.open("wb")
        self._file.write(MAGIC + struct.pack("<I", VERSION))
        start, each, rest = (f"{self.sizes[key] / 1e6:,.2f} MB" for key in ("start", "full", "sampled"))
        print(
            f"recording to {self.path}: the start {start}, each of the full steps {sorted(self.full)} about {each}"
            f"{' and its layers' * self.layers}, any other {rest} and its batches",
            file=sys.stderr,
        )
        self._write_start()
        for optimizer in self.optimizers:
            self._handles.append(optimizer.register_step_pre_hook(self._before_step))
            self._handles.append(optimizer.register_step_post_hook(self._after_step))
        self._arm()
        return self

    def __exit__(self, *_: Any) -> None:
        for handle in (*self._handles, *self._full_handles):
            handle.remove()
        self._file.close()
        self._file = None

    def batch(self, **arrays: Any) -> None:
        """What the loss of one forward pass is computed from, by names: call it before the forward pass.

        With accumulation, call it once for each backward pass of the step.

        Args:
          **arrays: tensors, arrays or numbers.

        Raises:
          RuntimeError: outside of the block.
        """
        if self._file is None:
            raise RuntimeError("r.batch belongs into the block: with record(model, optimizer, path) as r: ...")
        self._batches.append({name: _array(x) for name, x in arrays.items()})
        self._listening = len(self._batches) == 1
        if self.step + 1 in self._redo:
            self._given.append({k: x.detach().clone() if hasattr(x, "detach") else x for k, x in arrays.items()})

    def loss(self, loss: Any) -> None:
        """The loss on which backward is called, before a GradScaler scales it. Call it before backward.

        Args:
          loss: a tensor or a number.
        """
        number = len(self._losses)
        self._losses.append(loss.detach() if hasattr(loss, "detach") else loss)
        if getattr(loss, "requires_grad", False):
            loss.register_hook(lambda grad, factors=self._factors: factors.__setitem__(number, grad.detach()))

    def redo(self, closure: Callable[..., Any], step: int) -> None:
        """Make a full one of a step, and do it again in float64 and with another number of threads.

        That says how far torch is from itself, tensor by tensor: the yardstick for a port. Ask before the step. The
        model, the optimizer and the random streams are left as they were.

        Args:
          closure: `closure(**batch) -> loss`, for what was given to `batch`; it does not call backward.
          step: from 1.

        Raises:
          ValueError: a step that is over, or that has its batches already.
        """
        if step <= self.step or (step == self.step + 1 and self._batches):
            raise ValueError(f"step {step} is over or under way, {self.step} were taken: call redo before it")
        self._redo[step] = closure
        self.full.add(step)
        if step == self.step + 1 and self._snapshot is None:
            self._arm()

    # a step

    def _clear(self) -> None:
        self._batches: list[Arrays] = []
        self._given: list[Tensors] = []
        self._listening = True  # to the layers: of a step's first batch
        self._losses: list[Any] = []
        self._factors: dict[int, Any] = {}
        self._hyper: list[list[dict[str, Any]]] = [[] for _ in self.optimizers]
        self._grads: Tensors = {}  # what the optimizers saw
        self._raw: Tensors = {}
        self._heard = Heard()

    def _arm(self) -> None:
        """Before a step: if it is a full one, keep how things stand, and listen."""
        self._snapshot = None
        if self.step + 1 not in self.full:
            return
        self._snapshot = {
            "before": {name: _clone(x) for name, x in self._tensors().items()},
            "state": [{p: _copied(state) for p, state in o.state.items()} for o in self.optimizers],
            "rng": self._rng(),
        }
        for name, parameter in self.parameters.items():
            if parameter.requires_grad:
                hook = lambda p, name=name: self._raw.__setitem__(name, _clone(_dense(p.grad)))  # noqa: E731
                self._full_handles.append(parameter.register_post_accumulate_grad_hook(hook))
        self._heard = self._listen()

    def _listen(self) -> Heard:
        """Copy every module's input and output at once (an operation in place may follow), and the gradient of it."""
        heard, calls = Heard(), defaultdict[str, int](int)
        made: dict[tuple[int, int], tuple[str, Any]] = {}  # whose output a tensor is; it is kept, so that its id is

        def tensor_in(values: Any) -> Any:
            return _first(values, self.torch.Tensor) if self._listening and self.torch.is_grad_enabled() else None

        def key_of(name: str) -> str:
            return f"{name}#{calls[name]}" if calls[name] else name

        def before(name: str, arguments: Any) -> None:
            tensor = tensor_in(arguments)
            if tensor is None:
                return
            known = made.get((id(tensor), tensor._version))
            if known is not None:
                heard.input_of[key_of(name)] = known[0]
            else:
                heard.inputs[key_of(name)] = _clone(tensor)

        def after(name: str, output: Any) -> None:
            tensor = tensor_in(output)
            if tensor is None:
                return
            key = key_of(name)
            calls[name] += 1
            heard.outputs[key] = _clone(tensor)
            made.setdefault((id(tensor), tensor._version), (key, tensor))
            if tensor.requires_grad:
                tensor.register_hook(lambda grad: heard.grads.__setitem__(key, _clone(grad)))

        for name, module in self.model.named_modules() if self.layers else ():
            enter = lambda _m, arguments, name=name: before(name, arguments)  # noqa: E731
            leave = lambda _m, _i, output, name=name: after(name, output)  # noqa: E731
            self._full_handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
        return heard

    def _deaf(self) -> None:
        for handle in self._full_handles:
            handle.remove()
        self._full_handles.clear()

    def _before_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if self._muted:
            return
        self._hyper[self._number(optimizer)] = [_options(group) for group in optimizer.param_groups]
        if not _closure(args, kwargs):
            self._see(optimizer)

    def _after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if self._muted:
            return
        if _closure(args, kwargs):  # which has made the gradients
            self._see(optimizer)
        if optimizer is not self.optimizers[-1]:
            return
        self.step += 1
        self._deaf()
        self._write_step()
        if self.step in self._redo:
            self._write_redo(self._redo.pop(self.step))
        self._clear()
        self._arm()

    def _see(self, optimizer: Any) -> None:
        full = self._snapshot is not None
        for p in _of(optimizer):
            if p.grad is not None:
                grad = _dense(p.grad)
                self._grads[self.names[id(p)]] = _clone(grad) if full else grad.detach()

    def _write_step(self) -> None:
        after = self._tensors()
        header = {
            "kind": "step",
            "step": self.step,
            "full": self._snapshot is not None,
            "losses": [float(loss) for loss in self._losses],
            "factors": [float(self._factors.get(i, 1.0)) for i in range(len(self._losses))],
            "hyper": self._hyper,
            "no_grad": [name for name in self.parameters if name not in self._grads],
            "inputs": self._heard.input_of,
        }
        arrays = {f"batch/{i}/{k}": x for i, batch in enumerate(self._batches) for k, x in batch.items()}
        for kind, tensors in (("grad", self._grads), ("after", after)):
            tensors = {name: x for name, x in tensors.items() if name in self._index}
            arrays[f"sample/{kind}"] = self._samples(tensors)
            arrays[f"norm/{kind}"] = self._norms(tensors)
            header[kind] = list(tensors)
        if self._snapshot is not None:
            arrays |= self._full_arrays(after)
        self._write(header, arrays)

    def _full_arrays(self, after: Tensors) -> Arrays:
        assert self._snapshot is not None
        heard, grads = self._heard, self._grads
        changed = {n: x for n, x in self._raw.items() if n in grads and not self.torch.equal(x, grads[n])}
        kept = {n: x for n, x in heard.outputs.items() if x.numel() * x.element_size() <= LARGEST_OUTPUT}
        parts = {
            "before": self._snapshot["before"] if self.step > 1 else {},
            "grad": grads,
            "raw": changed,
            "after": after,
            "output": kept,
            "output_grad": {n: x for n, x in heard.grads.items() if n in kept},
            "input": {n: x for n, x in heard.inputs.items() if n in kept},
        }
        arrays = {f"{part}/{name}": _array(x) for part, tensors in parts.items() for name, x in tensors.items()}
        return arrays | self._states(self._snapshot["state"])

    # what is written

    def _write_start(self) -> None:
        torch, buffers = self.torch, self._buffers()
        every = self.model.named_parameters(remove_duplicate=False)
        tied = {name: self.names[id(p)] for name, p in every if name not in self.parameters}
        first = next(iter(self.parameters.values()), None)
        device = "cpu" if first is None else first.device.type
        header = {
            "kind": "start",
            "torch": torch.__version__,
            "device": device if device == "cpu" else f"{device}: {torch.cuda.get_device_name()}",
            "threads": torch.get_num_threads(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "tf32": device == "cuda"
            and {"matmul": torch.backends.cuda.matmul.allow_tf32, "cudnn": torch.backends.cudnn.allow_tf32},
            "parameters": [_described(n, p) | {"trained": p.requires_grad} for n, p in self.parameters.items()],
            "buffers": [_described(n, b) for n, b in buffers.items()],
            "tied": tied,
            "modules": [
                {"name": name, "kind": type(m).__name__, "options": _plain(vars(m))}
                for name, m in self.model.named_modules()
            ],
            "optimizers": [
                {
                    "kind": type(o).__name__,
                    "groups": [
                        {"names": [self.names[id(p)] for p in g["params"]], "options": _options(g)}
                        for g in o.param_groups
                    ],
                }
                for o in self.optimizers
            ],
        }
        arrays = {f"model/{name}": _array(x) for name, x in self._tensors().items()}
        arrays |= {f"index/{name}": _array(x) for name, x in self._index.items()}
        self._write(header, arrays | self._states([o.state for o in self.optimizers]))

    def _states(self, states: Sequence[dict[Any, dict[str, Any]]]) -> Arrays:
        return {
            f"state/{self.names[id(p)]}/{key}": _array(x)
            for state in states
            for p, one in state.items()
            if id(p) in self.names
            for key, x in one.items()
            if x is not None and not isinstance(x, str | list | dict)
        }

    def _write(self, header: dict[str, Any], arrays: Arrays) -> None:
        header["arrays"] = [[name, _dtype(x), list(x.shape)] for name, x in arrays.items()]
        text = json.dumps(header).encode()
        payload = b"".join(np.ascontiguousarray(x).tobytes() for x in arrays.values())
        crc = struct.pack("<I", zlib.crc32(payload, zlib.crc32(text)))
        self._file.write(FRAME.pack(b"FRAM", len(text), len(payload)) + text + payload + crc)
        self._file.flush()

    def _sampled(self, name: str, x: Any) -> Any:
        """Which elements are looked at: fixed, drawn from the name and the size."""
        draw = np.random.default_rng([zlib.crc32(name.encode()), x.numel()])
        at = np.sort(draw.choice(x.numel(), min(SAMPLED, x.numel()), replace=False))
        return self.torch.from_numpy(at.astype(np.int64)).to(x.device)

    def _samples(self, tensors: Tensors) -> np.ndarray:
        """The sampled elements of all, in one array; complex ones as two."""
        torch = self.torch
        if not tensors:
            return np.zeros(0, np.float32)
        with torch.no_grad():
            taken = [torch.take(x.detach(), self._index[name]) for name, x in tensors.items()]
            real = [torch.view_as_real(x).flatten() if x.is_complex() else x for x in taken]
            return _array(torch.cat([x.to(torch.float64 if self._wide else torch.float32) for x in real]))

    def _norms(self, tensors: Tensors) -> np.ndarray:
        """The L2 norm of each."""
        torch, found = self.torch, np.zeros(len(tensors), np.float64)
        floats = [i for i, x in enumerate(tensors.values()) if x.is_floating_point() or x.is_complex()]
        values = list(tensors.values())
        if floats:
            with torch.no_grad():
                norms = torch._foreach_norm([values[i].detach() for i in floats])
                found[floats] = _array(torch.stack([x.to(torch.float32) for x in norms]))
        return found

    # the same step once more

    def _write_redo(self, closure: Callable[..., Any]) -> None:
        assert self._snapshot is not None
        torch, threads = self.torch, self.torch.get_num_threads()
        grads = {name: x.clone() for name, x in self._grads.items()}
        with self._set_aside():
            own = self._again(closure, grads)
            apart = {}
            torch.set_num_threads(1 if threads > 1 else 2)
            try:
                apart["threads"] = _apart(self._again(closure, grads), own)
            finally:
                torch.set_num_threads(threads)
            if any(type(each).__name__ == "Muon" for each in self.optimizers):
                apart["bfloat16"] = _apart(self._again(closure, self._nudged(grads)), own)
            try:
                apart["float64"] = _apart(self._again(closure, grads, torch.float64), own)
            except RuntimeError as error:  # a module that casts
                print(f"step {self.step} cannot be done in float64: {error}", file=sys.stderr)
        self._write({"kind": "redo", "step": self.step, "apart": apart}, {})

    @contextmanager
    def _set_aside(self) -> Iterator[None]:
        """What the reruns change is put back."""
        buffers = [(m, name, b) for m in self.model.modules() for name, b in m._buffers.items() if b is not None]
        parameters = [(p, p.data, p.grad) for p in self.parameters.values()]
        states, rng, self._muted = [o.state for o in self.optimizers], self._rng(), True
        try:
            yield
        finally:
            for p, data, grad in parameters:
                p.grad, p.data = None, data
                p.grad = grad
            for module, name, buffer in buffers:
                module._buffers[name] = buffer
            for optimizer, state in zip(self.optimizers, states, strict=True):
                optimizer.state = state
            self._set_rng(rng)
            self._muted = False

    def _again(self, closure: Callable[..., Any], seen: Tensors, dtype: Any = None) -> dict[str, Arrays]:
        """The step from its snapshot: its losses, gradients and layers; and with what the optimizer saw, the update."""
        snapshot = self._snapshot
        assert snapshot is not None

        def cast(x: Any) -> Any:
            x = x.detach().clone() if hasattr(x, "detach") else x
            return x.to(dtype) if dtype is not None and hasattr(x, "detach") and x.is_floating_point() else x

        for name, p in self.parameters.items():
            p.grad, p.data = None, cast(snapshot["before"][name])
        for prefix, module in self.model.named_modules():
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    full = f"{prefix}.{name}" if prefix else name
                    module._buffers[name] = cast(snapshot["before"].get(full, buffer))
        self._set_rng(snapshot["rng"])
        heard, losses = self._listen(), []
        with self.torch.enable_grad():
            for number, batch in enumerate(self._given):
                self._listening = number == 0
                loss = closure(**{name: cast(x) for name, x in batch.items()})
                loss.backward()
                losses.append(loss)
        self._deaf()
        grads = {n: p.grad for n, p in self.parameters.items() if p.grad is not None and not p.grad.is_sparse}
        for name, p in self.parameters.items():
            p.grad = cast(seen[name]) if name in seen else None
        for number, optimizer in enumerate(self.optimizers):
            copies = {
                p: {k: x if k == "step" else cast(x) for k, x in _copied(one).items()}
                for p, one in snapshot["state"][number].items()
            }
            optimizer.state = defaultdict(dict, copies)
            if type(optimizer).__name__ != "LBFGS":
                type(optimizer).step(optimizer)
        found = {
            "loss": {str(i): x for i, x in enumerate(losses)},
            "grad": grads,
            "output": heard.outputs,
            "output_grad": heard.grads,
            "after": self.parameters,
        }
        return {kind: {name: _numbers(x) for name, x in tensors.items()} for kind, tensors in found.items()}

    def _nudged(self, grads: Tensors) -> Tensors:
        """Gradients off by a rounding of bfloat16, in which Muon multiplies: its float64 rerun rounds the same."""
        generator = self.torch.Generator().manual_seed(0)
        draw = {n: self.torch.rand(x.shape, generator=generator).to(x.device) - 0.5 for n, x in grads.items()}
        return {n: x * (1 + 2**-8 * draw[n]).to(x.dtype) for n, x in grads.items()}

    # small things

    def _buffers(self) -> Tensors:
        return {n: b for n, b in self.model.named_buffers() if n in self.model.state_dict()}

    def _tensors(self) -> Tensors:
        return self.parameters | self._buffers()

    def _number(self, optimizer: Any) -> int:
        return next(i for i, each in enumerate(self.optimizers) if each is optimizer)

    def _state_bytes(self) -> int:
        return _bytes(x for o in self.optimizers for one in o.state.values() for x in one.values()) or 2 * _bytes(
            self.parameters.values()
        )

    def _rng(self) -> list[Any]:
        torch = self.torch
        return [torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None]

    def _set_rng(self, states: list[Any]) -> None:
        self.torch.set_rng_state(states[0])
        if states[1] is not None:
            self.torch.cuda.set_rng_state_all(states[1])


def _of(optimizer: Any) -> list[Any]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _closure(args: Any, kwargs: Any) -> bool:
    """Whether `step` got a closure."""
    return bool(args or kwargs.get("closure"))


def _dense(x: Any) -> Any:
    return x.to_dense() if x.is_sparse else x


def _clone(x: Any) -> Any:
    return x.detach().clone()


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    return {key: _clone(x) if hasattr(x, "detach") else x for key, x in state.items()}


def _bytes(tensors: Iterable[Any]) -> int:
    return sum(x.numel() * x.element_size() for x in tensors if hasattr(x, "element_size"))


def _first(output: Any, tensor: type) -> Any:
    """The first tensor of what a module returns."""
    if isinstance(output, tensor):
        return output
    inside = output.values() if isinstance(output, dict) else output if isinstance(output, list | tuple) else ()
    return next((found for each in inside if (found := _first(each, tensor)) is not None), None)


class _Bits(np.ndarray):
    """The bits of numbers that NumPy does not have; `kind` is their dtype's name."""

    kind: str


def _array(x: Any) -> np.ndarray:
    if not hasattr(x, "detach"):
        return np.array(x)
    x = _dense(x.detach().cpu())
    x = x.resolve_conj() if x.is_complex() else x
    if str(x.dtype) not in BITS:
        return x.numpy().copy()
    torch = sys.modules["torch"]
    bits = x.contiguous().view(torch.int16 if x.element_size() == 2 else torch.int8).numpy().copy().view(_Bits)
    bits.kind = BITS[str(x.dtype)]
    return bits


def _dtype(x: np.ndarray) -> str:
    return getattr(x, "kind", None) or x.dtype.name


def _described(name: str, x: Any) -> dict[str, Any]:
    return {"name": name, "shape": list(x.shape), "dtype": str(x.dtype).removeprefix("torch.")}


def _options(group: dict[str, Any]) -> dict[str, Any]:
    options = {key: value for key, value in group.items() if key not in ("params", "param_names")}
    return _plain({k: v.item() if hasattr(v, "detach") and v.numel() == 1 else v for k, v in options.items()})


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """What JSON has: numbers, texts and sequences of them."""

    def simple(x: Any) -> bool:
        return x is None or isinstance(x, bool | int | float | str)

    return {
        key: list(x) if isinstance(x, list | tuple) else x
        for key, x in values.items()
        if not key.startswith("_") and (simple(x) or (isinstance(x, list | tuple) and all(map(simple, x))))
    }


def _numbers(x: Any) -> np.ndarray:
    """In the widest numbers there are, one after the other."""
    torch = sys.modules["torch"]
    return _array(x.detach().to(torch.complex128 if x.is_complex() else torch.float64)).ravel()


def _apart(ours: dict[str, Arrays], torchs: dict[str, Arrays]) -> dict[str, dict[str, list[float]]]:
    """L2 and largest distance, relative to the tensor's own."""

    def apart(a: np.ndarray, b: np.ndarray) -> list[float]:
        tiny, d = 1e-300, np.abs(a - b)
        return [
            float(np.linalg.norm(d) / (np.linalg.norm(b) + tiny)),
            float(d.max(initial=0) / (np.abs(b).max(initial=0) + tiny)),
        ]

    return {
        kind: {name: apart(ours[kind][name], x) for name, x in arrays.items() if name in ours[kind]}
        for kind, arrays in torchs.items()
    }
