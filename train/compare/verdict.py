"""What a comparison came to, in words and numbers, for the terminal and the page."""

from train.compare.blame import Blame
from train.compare.lockstep import NAMES as NAMES
from train.compare.lockstep import YARDSTICKS, Lockstep, Pair

ROUNDING = {
    "forward": "The forward pass made it, by rounding: in {choices:,} of {windows:,} max-pooling windows two values "
    "are so near to each other that rounding decides which is the larger, and the gradient goes to another one whole. "
    "It is {gradient} eps off; from torch's gradient with the same choices {backward}, torch from itself "
    "{torch_backward}.",
    "gradient": "The gradient has the largest share in this step, by rounding: sums are added up in another order. "
    "From the same parameters it is {backward} eps off, torch from itself {torch_backward}.",
    "update": "The update has the largest share in this step, by rounding: with the same gradients and state it is "
    "{update} eps off, torch from itself {torch_update}.",
}
DIFFERENCE = {
    "forward": "The forward pass made it, and not by rounding: from the same parameters the loss is {loss} eps off, "
    "torch from itself {torch_loss}. The two compute another loss.",
    "gradient": "The gradient made it, and not by rounding: from the same parameters, with the same choices of the max "
    "pooling, it is {backward} eps off, torch from itself {torch_backward}.",
    "update": "The update made it, and not by rounding: with the same gradients and state it is {update} eps off, "
    "torch from itself {torch_update}. The optimizers, or their options, differ.",
}


def header() -> str:
    """What is printed above the epochs' lines."""
    return (
        f"{'epoch':>5} {'loss, torch':>13} {'ours':>13} {'apart':>8} {'torch itself':>12} {'times':>6} "
        f"{'accuracy, torch':>15} {'ours':>7} {'images/s, torch':>15} {'ours':>7}"
    )


def line(pair: Pair, speed: tuple[float, float]) -> str:
    """What is printed of an epoch; `speed` is images a second here and in torch."""
    apart, itself = distances(pair)
    return (
        f"{pair.ours.number:>5} {pair.torch.running_loss:>13.6f} {pair.ours.running_loss:>13.6f} {apart:>8.1e} "
        f"{itself:>12.1e} {times(apart, itself):>6} {pair.torch.accuracy:>15.2%} {pair.ours.accuracy:>7.2%} "
        f"{speed[1]:>15,.0f} {speed[0]:>7,.0f}"
    )


def distances(pair: Pair) -> tuple[float, float]:
    """How far our running loss is from torch's, and how far the farthest of torch's other forms is."""
    torch = pair.torch.running_loss
    return abs(pair.ours.running_loss - torch), max(abs(other.running_loss - torch) for other in pair.others)


def times(apart: float, itself: float) -> str:
    return f"{apart / itself:.2f}" if itself else "0" if apart == 0 else "-"


def sentences(lockstep: Lockstep, blame: Blame | None) -> list[str]:
    """Where the runs part, what made it, and where torch parts from itself."""
    bound = f"{lockstep.bound:g} eps of the largest value of a parameter"
    if lockstep.stopped is not None:
        step, ours, torch = lockstep.stopped
        stop = [f"The run stops at step {step:,}, where our loss is {ours}, and torch's {torch}."]
    else:
        stop = []
    if blame is None:
        said = [f"The two runs never part by more than {bound}, in {len(lockstep.distances):,} steps."]
    else:
        ours, torch, at = blame.ours, blame.torch, blame.parameter
        said = [
            f"The two runs part by more than {bound} first after step {blame.step:,}, in {NAMES[at]}: it is "
            f"{eps(blame.apart)} eps off, and was {eps(blame.carried)} before the step.",
            (ROUNDING if blame.rounding else DIFFERENCE)[blame.cause].format(
                choices=blame.own_choices,
                windows=blame.windows,
                gradient=eps(blame.own_gradient),
                backward=eps(blame.own_backward if blame.cause == "forward" else ours.backward[at]),
                update=eps(ours.update[at]),
                **{f"torch_{name}": eps(getattr(torch, name)[at]) for name in ("backward", "update")},
                loss=eps(ours.loss),
                torch_loss=eps(torch.loss),
            ),
        ]
    itself = []
    for side, name in enumerate(YARDSTICKS, start=1):
        first = lockstep.first_beyond(side)
        itself.append(f"{name} never" if first is None else f"{name} after step {first[0]:,}, in {NAMES[first[1]]}")
    return [*stop, *said, f"torch parts so far from itself: {'; '.join(itself)}."]


def eps(distance: float) -> str:
    return f"{distance:.1f}" if distance < 100 else f"{distance:,.0f}"
