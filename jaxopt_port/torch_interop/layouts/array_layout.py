"""How the same weights lie in torch's array and in flax's: reshape, permute axes, reverse some, reshape."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Shape = tuple[int, ...]


class Layout(NamedTuple):
    """The way from torch's array to flax's. It only moves elements, so that an optimizer's moments go the same way.

    Args:
      name: for people.
      torch: torch's shape.
      split: torch's array is given this shape first,
      order: then its axes are put in this order,
      flip: then these are reversed.
      flax: flax's shape, which it is given last.
    """

    name: str
    torch: Shape
    split: Shape
    order: Shape
    flip: Shape
    flax: Shape

    def to_flax(self, x: np.ndarray) -> np.ndarray:
        """torch's array, of shape `torch`, as flax has it, of shape `flax`."""
        x = np.flip(x.reshape(self.split).transpose(self.order), self.flip)
        return np.ascontiguousarray(x).reshape(self.flax)

    def to_torch(self, x: np.ndarray) -> np.ndarray:
        """flax's array, of shape `flax`, as torch has it, of shape `torch`."""
        x = x.reshape(tuple(self.split[axis] for axis in self.order))
        x = np.flip(x, self.flip).transpose(np.argsort(self.order, kind="stable"))
        return np.ascontiguousarray(x).reshape(self.torch)

    @property
    def torch_axes(self) -> Shape:
        """Of each axis of flax's array, which axis of torch's it is, or is in: a kernel of `linear` has (1, 0)."""
        owners = _owners(self.split, self.torch)
        moved = [owners[axis] for axis in self.order]
        into = _owners(tuple(self.split[axis] for axis in self.order), self.flax)
        return tuple(
            next(torch for torch, at in zip(moved, into, strict=True) if at == axis) for axis in range(len(self.flax))
        )

    @property
    def last_two(self) -> tuple[int, int] | None:
        """Which axes of flax's array are the last two of torch's; None where each is not an axis of its own."""
        if len(self.torch) < 2 or len(self.flax) < 2 or self.split != self.torch or len(self.flax) != len(self.torch):
            return None
        axes = self.torch_axes
        return axes.index(len(axes) - 2), axes.index(len(axes) - 1)


class Source(NamedTuple):
    """An array of torch's, or the part of one that is an array in flax."""

    name: str
    shape: Shape  # of the part
    part: int = 0
    parts: int = 1  # equal parts along the first axis


def _owners(parts: Shape, whole: Shape) -> list[int]:
    """Which axis of `whole` each of `parts` is in, where these are one after the other."""
    owners, axis, size = [], 0, 1
    for part in parts:
        owners.append(axis)
        size *= part
        if size == whole[axis] and axis < len(whole) - 1:
            axis, size = axis + 1, 1
    return owners


# torch's shape and flax's -> the layout, or None where they do not fit it.
Kind = Callable[[Shape, Shape], Layout | None]


def _layout(name: str, torch: Shape, split: Shape, order: Shape, flax: Shape, flip: Shape = ()) -> Layout | None:
    if math.prod(split) != math.prod(torch) or math.prod(flax) != math.prod(torch):
        return None
    return Layout(name, torch, split, order, flip, flax)


def same(torch: Shape, flax: Shape) -> Layout | None:
    """The same array: a bias, a scale, an embedding, a statistic."""
    return _layout("same", torch, torch, tuple(range(len(torch))), flax) if torch == flax else None


def linear(torch: Shape, flax: Shape) -> Layout | None:
    """Linear [out, in] and Dense [in, out].

    Example:
      >>> linear((3, 2), (2, 3)).order, linear((3, 2), (3, 2))
      ((1, 0), None)
    """
    return _layout("linear", torch, torch, (1, 0), flax) if len(torch) == 2 and flax == torch[::-1] else None


def convolution(torch: Shape, flax: Shape) -> Layout | None:
    """Conv1d, 2d, 3d [out, in / groups, *window] and Conv [*window, in / groups, out]."""
    order = (*range(2, len(torch)), 1, 0)
    fits = len(torch) > 2 and flax == tuple(torch[axis] for axis in order)
    return _layout("convolution", torch, torch, order, flax) if fits else None


def bias_of_channels(torch: Shape, flax: Shape) -> Layout | None:
    """A convolution's bias [out] and equinox's [out, 1, 1]; [out, 1] is one of `to_heads`."""
    fits = len(torch) == 1 and len(flax) > 2 and flax == (*torch, *(1 for _ in flax[1:]))
    return _layout("bias of channels", torch, torch, (0,), flax) if fits else None


def transposed_convolution(torch: Shape, flax: Shape) -> Layout | None:
    """ConvTranspose1d, 2d, 3d [in, out, *window] and ConvTranspose [*window, in, out], where torch mirrors the window.

    torch's `padding=p` is flax's `padding=((k - 1 - p, k - 1 - p), ...)` for a window of k. With flax's
    `transpose_kernel=True` it is `convolution`.
    """
    window = tuple(range(len(torch) - 2))
    order = (*range(2, len(torch)), 0, 1)
    fits = len(torch) > 2 and flax == tuple(torch[axis] for axis in order)
    return _layout("transposed convolution, mirrored", torch, torch, order, flax, window) if fits else None


def equinox_transposed_convolution(torch: Shape, flax: Shape) -> Layout | None:
    """ConvTranspose1d, 2d, 3d [in, out, *window] and equinox's [out, in, *window], where torch mirrors the window."""
    order = (1, 0, *range(2, len(torch)))
    fits = len(torch) > 2 and flax == tuple(torch[axis] for axis in order)
    return _layout("equinox's transposed convolution, mirrored", torch, torch, order, flax, order[2:]) if fits else None


def flattened(channels: int, *size: int) -> Kind:
    """Linear [out, channels * size] after a convolution's output was flattened: channels first in torch, last in flax.

    Args:
      channels: of the last convolution.
      *size: height and width of its output.

    Returns:
      The kind of layout, for `infer(layouts={"fc.weight": flattened(64, 4, 4)})`.

    Example:
      >>> layout = flattened(2, 1, 2)((1, 4), (4, 1))
      >>> layout.to_flax(np.array([[0, 1, 10, 11]])).ravel()  # channel 0's two pixels, then channel 1's
      array([ 0, 10,  1, 11])
    """
    pixels = math.prod(size)

    def kind(torch: Shape, flax: Shape) -> Layout | None:
        if len(torch) != 2 or torch[1] != channels * pixels or flax != torch[::-1]:
            return None
        name = f"linear after flattening {channels} channels x {' x '.join(map(str, size))}"
        return _layout(name, torch, (torch[0], channels, pixels), (2, 1, 0), flax)

    return kind


def to_heads(torch: Shape, flax: Shape) -> Layout | None:
    """Query, key or value: Linear [heads * size, in] and DenseGeneral [in, heads, size]; biases."""
    if len(flax) == 2 and torch == (math.prod(flax),):
        return _layout("to heads", torch, flax, (0, 1), flax)
    if len(flax) != 3 or torch != (flax[1] * flax[2], flax[0]):
        return None
    return _layout("to heads", torch, (flax[1], flax[2], flax[0]), (2, 0, 1), flax)


def from_heads(torch: Shape, flax: Shape) -> Layout | None:
    """The projection of an attention's output: Linear [out, heads * size] and DenseGeneral [heads, size, out]."""
    if len(flax) != 3 or torch != (flax[2], flax[0] * flax[1]):
        return None
    return _layout("from heads", torch, (flax[2], flax[0], flax[1]), (1, 2, 0), flax)
