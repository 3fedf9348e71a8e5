"""The optimizer at every step, on the sampled elements: torch's parameters and gradients there, our state.

An elementwise optimizer can be followed so exactly; one that looks at whole tensors (Muon, Adafactor, LAMB, LBFGS)
needs full steps, and is told from the others by its first one.
"""

from typing import Any

import jax
import numpy as np

from jaxopt_port.compare import blame, noise
from jaxopt_port.compare.findings import Finding, number
from jaxopt_port.compare.noise import distance, norm
from jaxopt_port.compare.port import Port
from jaxopt_port.compare.trace import Arrays, Step
from jaxopt_port.optimizer import Optimizer

Tree = Any


class Samples:
    """Follows torch's optimizer, a step at a time."""

    def __init__(self, port: Port, state: Tree):
        self.port, self.state = port, state
        self.trace = port.trace
        self.shapes = {each["name"]: (tuple(each["shape"]), each["dtype"]) for each in self.trace.parameters}
        self.before = {name: x.ravel()[self.trace.index[name]] for name, x in self.trace.model.items()}
        self.elementwise = self.known()
        self.skips = isinstance(port.optimizer, Optimizer)

    def known(self) -> set[str]:
        """What no optimizer of torch's that looks at whole tensors steps: until a full step says more."""
        whole = ("Muon", "Adafactor", "LBFGS")
        return {
            name
            for each in self.trace.optimizers
            if each["kind"] not in whole
            for group in each["groups"]
            for name in group["names"]
        }

    def spread(self, samples: Arrays) -> Arrays:
        """Whole arrays with the sampled elements in their places, and zeros."""
        found = {}
        for name, values in samples.items():
            shape, _ = self.shapes[name]
            flat = np.zeros(int(np.prod(shape)), values.dtype)
            flat[self.trace.index[name]] = values
            found[name] = flat.reshape(shape)
        return found

    def step(self, step: Step, trainable: Tree, whole: Arrays | None) -> Finding | None:
        """One step; what is off. `trainable` is for its tree and dtypes; `whole` are ours after a full step."""
        after, grads = self.trace.samples(step, "after"), self.trace.samples(step, "grad")
        before = {name: self.before[name] for name in self.shapes}
        params = self.port.to_ours(self.spread(before), trainable)
        given = {name: grads.get(name, np.zeros_like(before[name])) for name in self.shapes}
        tree = self.port.to_ours(self.spread(given), trainable)
        missing = {name for name in self.port.names if self.port.tied(name) not in grads}
        if missing and self.skips:
            tree = self.without(tree, missing)
        new, state = self.port.stepped(tree, self.state, params, len(step.batches()))
        ours = self.port.to_torch(new)
        if whole is not None:
            self.elementwise &= {n for n in self.port.names if self.agrees(n, ours, whole, before)}
        moved, off = {}, []
        for name in self.port.names:
            own = self.port.tied(name)
            if own not in grads or own not in self.elementwise:
                continue
            mine, theirs, old = ours[name].ravel()[self.trace.index[own]], after[own], before[own]
            scale = norm(np.asarray(theirs, np.float64) - old)
            dtype = self.shapes[own][1]
            rounding = 2 * noise.EPS.get(dtype, noise.EPS["float32"]) * max(norm(theirs), norm(old))
            allowed = blame.floor(self.port, own) * scale + rounding
            apart = distance(mine, theirs)
            if not apart <= allowed:
                off.append((name, apart / (scale or 1.0), allowed / (scale or 1.0)))
                moved[name] = (mine - old, theirs - old, old)
        state_before, self.state, self.before = self.state, state, after
        if not off:
            return None
        name, apart, allowed = off[0]
        why, stage = blame.update(self.port, step, state_before, trainable, name, moved)
        return Finding(
            step.number,
            stage,
            name,
            apart,
            allowed,
            f"the update of {name} in step {step.number} is {number(apart)} of torch's step off, with torch's own "
            f"gradients ({len(off)} of {len(grads)} parameters are off)",
            why,
        )

    def agrees(self, name: str, sampled: Arrays, whole: Arrays, before: Arrays) -> bool:
        """Whether the sampled elements step as they do among all of the parameter's."""
        own = self.port.tied(name)
        index, old = self.trace.index[own], before[own]
        a, b = sampled[name].ravel()[index], whole[name].ravel()[index]
        rounding = 4 * noise.EPS.get(self.shapes[own][1], noise.EPS["float32"]) * norm(b)
        return distance(a, b) <= 1e-4 * norm(np.asarray(b, np.float64) - old) + rounding

    def without(self, tree: Tree, names: set[str]) -> Tree:
        """None in place of the gradients that torch does not have."""
        entries = self.port.mapping.by_name()
        paths = {entry.path for name in names for entry in entries[name]}
        at = {i for path, i in _leaves(tree).items() if path in paths}
        leaves, treedef = jax.tree.flatten(tree)
        return treedef.unflatten([None if i in at else leaf for i, leaf in enumerate(leaves)])


def _leaves(tree: Tree) -> dict[str, int]:
    from jaxopt_port.torch_interop.layouts.layout import weight_leaves

    return weight_leaves(tree)
