"""torch's strong-Wolfe line search: bracket by cubic extrapolation, then zoom by cubic interpolation."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxopt_port.closure.flat import dot, max_abs
from jaxopt_port.scalars import python_max, python_min

Pair = tuple[jax.Array, jax.Array]

MAX_SEARCH = 25  # torch's limit for a line search that is given none


class Found(NamedTuple):
    """What a line search found.

    Args:
      t: the step length; 0 where no better point was found.
      loss: the loss there.
      grad: the gradient there.
      evals: the evaluations spent.
      satisfied: whether the point satisfies the Wolfe conditions.
    """

    t: jax.Array
    loss: jax.Array
    grad: jax.Array
    evals: jax.Array
    satisfied: jax.Array


class _Search(NamedTuple):
    """The search between two evaluations. Of the bracket's gradients only the low end's is ever used again."""

    t: jax.Array  # the next point to evaluate
    pos: Pair  # the bracket; while it is being looked for, the last two points
    f: Pair
    gtd: Pair
    low: jax.Array  # which end of the bracket has the lower loss: 0 or 1
    grad: jax.Array  # the gradient at the low end; while the bracket is being looked for, at the last point
    evals: jax.Array
    bracketed: jax.Array
    insufficient: jax.Array  # the last point was too close to an end of the bracket
    satisfied: jax.Array
    from_start: jax.Array  # the low end is the starting point, after an exhausted search
    finished: jax.Array


ROUNDING = 64  # a loss is known to so many eps of its size


def rounding(loss: jax.Array) -> jax.Array:
    """By how much a loss may be off."""
    return ROUNDING * jnp.finfo(loss.dtype).eps * jnp.abs(loss)


def strong_wolfe(
    evaluate: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
    t: jax.Array,
    d: jax.Array,
    loss: jax.Array,
    grad: jax.Array,
    gtd: jax.Array,
    tolerance_change: jax.Array,
    max_ls: jax.Array,
    c1: float = 1e-4,
    c2: float = 0.9,
    slack: jax.Array | None = None,
) -> Found:
    r"""A step length with sufficient decrease and curvature, one evaluation a trip of one `lax.while_loop`.

    .. math::
      f(x + t d) \le f(x) + c_1 t g^T d, \quad |g(x + t d)^T d| \le c_2 |g^T d|

    Where the search is exhausted, or its bracket smaller than the tolerance, the lower end of the bracket is returned,
    which may be the starting point.

    Without a `slack` it is torch's search, with what that does where a number overflows or is none: a square beyond the
    dtype's range makes every later trial NaN. With one, every trial is in the bracket, and a point without a finite
    loss and slope is one that lies too far.

    Args:
      evaluate: the loss and the gradient at a step length.
      t: the first step length to try.
      d: the direction.
      loss: at the starting point.
      grad: at the starting point.
      gtd: `grad . d`.
      tolerance_change: the search ends where the bracket, times the largest element of `d`, is smaller.
      max_ls: how many evaluations may follow the first.
      c1: sufficient decrease; static.
      c2: curvature; static.
      slack: by how much the loss may rise and still count as decreasing, for a loss that is only known to rounding;
        None for torch's search.

    Returns:
      A `Found`.

    Example:
      >>> import jax.numpy as jnp
      >>> f = lambda x: jnp.sum(x * x)
      >>> x, d = jnp.array([4.0]), jnp.array([-1.0])
      >>> value_and_grad = jax.value_and_grad(f)
      >>> (loss, grad), along = value_and_grad(x), lambda t: value_and_grad(x + t * d)
      >>> found = strong_wolfe(along, jnp.float32(1), d, loss, grad, grad @ d, jnp.float32(1e-9), jnp.int32(25), c2=0.1)
      >>> float(found.t), int(found.evals), bool(found.satisfied)
      (4.0, 2, True)

    Source: torch/optim/lbfgs.py; Nocedal and Wright, Numerical Optimization, 2006, section 3.5.
    """
    zero, d_norm, safe = jnp.zeros_like(t), max_abs(d), slack is not None

    def body(s: _Search) -> _Search:
        f_new, g_new = evaluate(s.t)
        evals, gtd_new = s.evals + 1, dot(g_new, d)
        if safe:
            beyond = (f_new != -jnp.inf) & ~(jnp.isfinite(f_new) & jnp.isfinite(gtd_new))
            f_new, gtd_new = jnp.where(beyond, jnp.inf, f_new), jnp.where(beyond, jnp.nan, gtd_new)
        new = (s.t, f_new, gtd_new)
        f_test = f_new if slack is None else f_new - slack
        rises = f_test > loss + c1 * s.t * gtd  # no sufficient decrease
        flat = jnp.abs(gtd_new) <= -c2 * gtd
        out_of_evals = evals > max_ls
        found, keeps_new = _bracket(s, new, f_test, rises, flat, out_of_evals, (zero, loss), safe)
        zoomed, low_is_new = _zoom(s, new, f_test, rises, flat)
        n = jax.tree.map(lambda a, b: jnp.where(s.bracketed, a, b), zoomed, found._replace(grad=s.grad))
        keeps_new = jnp.where(s.bracketed, low_is_new, keeps_new)
        n = n._replace(grad=jnp.where(keeps_new, g_new, s.grad), evals=evals, finished=n.satisfied | out_of_evals)
        tiny = n.bracketed & (jnp.abs(n.pos[1] - n.pos[0]) * d_norm < tolerance_change)
        inside, insufficient = _point_inside(n, safe)
        return n._replace(
            t=jnp.where(n.bracketed, inside, n.t), insufficient=insufficient & n.bracketed, finished=n.finished | tiny
        )

    no = jnp.zeros((), bool)
    start = _Search(
        t=t, pos=(zero, t), f=(loss, loss), gtd=(gtd, gtd), low=jnp.int32(0), grad=grad, evals=jnp.int32(0),
        bracketed=no, insufficient=no, satisfied=no, from_start=no, finished=no,
    )  # fmt: skip
    end = jax.lax.while_loop(lambda s: ~s.finished, body, start)
    t, f = _at(end.pos, end.low), _at(end.f, end.low)
    # A rise within the slack is for a point that satisfies the conditions: no other is better than the starting point.
    stays = jnp.zeros((), bool) if slack is None else ~end.satisfied & ~(f < loss)
    t, f = jnp.where(stays, 0, t), jnp.where(stays, loss, f)
    return Found(t, f, jnp.where(end.from_start | stays, grad, end.grad), end.evals, end.satisfied)


def _bracket(
    s: _Search,
    new: tuple[jax.Array, jax.Array, jax.Array],
    f_test: jax.Array,
    rises: jax.Array,
    flat: jax.Array,
    out_of_evals: jax.Array,
    start: tuple[jax.Array, jax.Array],
    safe: bool,
) -> tuple[_Search, jax.Array]:
    """Before there is a bracket: it ends at the new point, or that one will do, or the next one lies further out.

    Second comes whether the gradient to keep is that at the new point.
    """
    t, f_new, gtd_new = new
    higher = rises | ((s.evals > 1) & (f_test >= s.f[0]))
    ends = ~out_of_evals & (higher | (~flat & (gtd_new >= 0)))
    satisfied = ~out_of_evals & ~higher & flat
    goes_on = ~out_of_evals & ~ends & ~satisfied
    bounds = (t + 0.01 * (t - s.pos[0]), t * 10)
    further = cubic_interpolate((s.pos[0], s.f[0], s.gtd[0]), new, bounds, safe)
    pos, f = (jnp.where(out_of_evals, a, b[0]) for a, b in zip(start, (s.pos, s.f), strict=True))
    low = jnp.where(satisfied, 1, _lower(f, f_new))
    found = s._replace(
        t=further,
        pos=(jnp.where(goes_on, t, pos), t),
        f=(jnp.where(goes_on, f_new, f), f_new),
        gtd=(jnp.where(goes_on, gtd_new, s.gtd[0]), gtd_new),
        low=low,
        bracketed=ends,
        satisfied=satisfied,
        from_start=out_of_evals & (low == 0),
    )
    return found, goes_on | (low == 1)


def _zoom(
    s: _Search, new: tuple[jax.Array, jax.Array, jax.Array], f_test: jax.Array, rises: jax.Array, flat: jax.Array
) -> tuple[_Search, jax.Array]:
    """The new point becomes an end of the bracket. Second comes whether it is the low end."""
    low, high = s.low, 1 - s.low
    worse = rises | (f_test >= _at(s.f, low))
    turns = ~worse & ~flat & (new[2] * (_at(s.pos, high) - _at(s.pos, low)) >= 0)  # the old low becomes the high end
    ends = []
    for ours, value in zip((s.pos, s.f, s.gtd), new, strict=True):
        at_high = jnp.where(worse, value, jnp.where(turns, _at(ours, low), _at(ours, high)))
        at_low = jnp.where(worse, _at(ours, low), value)
        ends.append((jnp.where(low == 0, at_low, at_high), jnp.where(low == 0, at_high, at_low)))
    pos, f, gtd = ends
    new_low = jnp.where(worse, _lower(*f), low)
    moved = s._replace(pos=pos, f=f, gtd=gtd, low=new_low, satisfied=~worse & flat)
    return moved, ~worse | (new_low != low)


def _point_inside(s: _Search, safe: bool) -> tuple[jax.Array, jax.Array]:
    """The next point in the bracket, and whether it is too close to an end.

    One that is, twice in a row or on the very end, is put a tenth of the bracket inside.
    """
    first, second = zip(s.pos, s.f, s.gtd, strict=True)
    t = cubic_interpolate(first, second, safe=safe)
    if safe:  # a tenth of the way to a point without a loss, for as long as none with one is found
        none_yet = (_at(s.pos, s.low) == 0) & (_at(s.f, 1 - s.low) == jnp.inf)
        t = jnp.where(none_yet, 0.1 * _at(s.pos, 1 - s.low), t)
    left, right = python_min(*s.pos), python_max(*s.pos)
    tenth = 0.1 * (right - left)
    close = python_min(right - t, t - left) < tenth
    moves = close & (s.insufficient | (t >= right) | (t <= left))
    inside = jnp.where(jnp.abs(t - right) < jnp.abs(t - left), right - tenth, left + tenth)
    return jnp.where(moves, inside, t), close & ~moves


def cubic_interpolate(
    first: tuple[jax.Array, jax.Array, jax.Array],
    second: tuple[jax.Array, jax.Array, jax.Array],
    bounds: Pair | None = None,
    safe: bool = False,
) -> jax.Array:
    r"""The minimum of the cubic through two points with their slopes, clamped to the bounds; their middle without one.

    .. math::
      d_1 &= g_1 + g_2 - 3 \frac{f_1 - f_2}{x_1 - x_2}, \quad d_2 = \sqrt{d_1^2 - g_1 g_2} \\
      t &= x_2 - (x_2 - x_1) \frac{g_2 + d_2 - d_1}{g_2 - g_1 + 2 d_2} \quad (x_1 \le x_2)

    Args:
      first: `(x, f, g)` of one point: position, value, slope.
      second: of the other.
      bounds: of the result, by default the two points.
      safe: whether the result is within the bounds whatever the numbers. Without it this is torch's, whose squares
        overflow for losses above 1e19 in float32, and then NaN.

    Returns:
      The position of the minimum.

    Example:
      >>> import jax.numpy as jnp
      >>> parabola = lambda x: (jnp.float32(x), jnp.float32((x - 1) ** 2), jnp.float32(2 * (x - 1)))
      >>> float(cubic_interpolate(parabola(0.0), parabola(3.0)))
      1.0

    Source: torch/optim/lbfgs.py; Nocedal and Wright, Numerical Optimization, 2006, equation (3.59).
    """
    (x1, f1, g1), (x2, f2, g2) = first, second
    ordered = x1 <= x2
    low, high = bounds or (jnp.where(ordered, x1, x2), jnp.where(ordered, x2, x1))
    d1 = g1 + g2 - 3 * (f1 - f2) / (x1 - x2)
    if safe:  # only their ratios count
        scale = jnp.maximum(jnp.abs(d1), jnp.maximum(jnp.abs(g1), jnp.abs(g2)))
        d1, g1, g2 = d1 / scale, g1 / scale, g2 / scale
    square = d1 * d1 - g1 * g2
    d2 = jnp.sqrt(square)
    forward = x2 - (x2 - x1) * ((g2 + d2 - d1) / (g2 - g1 + 2 * d2))
    backward = x1 - (x1 - x2) * ((g1 + d2 - d1) / (g1 - g2 + 2 * d2))
    t = jnp.where(ordered, forward, backward)
    clamped = python_min(python_max(t, low), high)
    has_minimum = (square >= 0) & ~jnp.isnan(t) if safe else square >= 0
    return jnp.where(has_minimum, clamped, (low + high) / 2)


def _lower(first: jax.Array, second: jax.Array) -> jax.Array:
    return jnp.where(first <= second, 0, 1).astype(jnp.int32)


def _at(pair: Pair, index: jax.Array) -> jax.Array:
    return jnp.where(index == 0, *pair)
