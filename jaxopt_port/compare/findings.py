"""What a comparison finds."""

from typing import NamedTuple

STAGES = ("start", "data", "loss", "gradient", "update", "schedule")  # in the order of blame


class Finding(NamedTuple):
    """Something that is further off than rounding makes it.

    Args:
      step: the first at which it is seen, from 1; 0 for the start.
      stage: one of `STAGES`.
      parameter: torch's name; None where it is no parameter's.
      apart: how far it is, relative to torch's own.
      allowed: how far it may be.
      what: a sentence that says what is off.
      why: what explains it, where something does.
      layer: torch's module, where one is known.
    """

    step: int
    stage: str
    parameter: str | None
    apart: float
    allowed: float
    what: str
    why: str = ""
    layer: str | None = None

    @property
    def sentence(self) -> str:
        return f"{self.what}{f': {self.why}' if self.why else ''}."


def number(x: float) -> str:
    return f"{x:.2g}" if abs(x) < 1e-2 or abs(x) >= 1e4 else f"{x:.3g}"


def first(findings: list[Finding]) -> Finding | None:
    """The one to blame: of the first step, and there the first stage."""
    return min(findings, key=lambda each: (each.step, STAGES.index(each.stage)), default=None)
