"""Whether what was read is what torch read: values to the bit, dtypes, shapes, Python types, the order of keys."""

import argparse
import collections
from typing import Any

import numpy as np
import torch

STRINGS = torch.device, torch.layout, type(torch.__version__)


def raw(x: Any) -> bytes:
    return x.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_same(ours: Any, theirs: Any) -> None:
    if isinstance(theirs, torch.Tensor):
        name = str(theirs.dtype).removeprefix("torch.")
        assert (ours.dtype.name, ours.shape) == (name, tuple(theirs.shape))
        assert ours.tobytes() == raw(theirs)
    elif isinstance(theirs, torch.dtype):
        assert f"torch.{ours.name}" == str(theirs)
    elif isinstance(theirs, STRINGS):
        assert type(ours) is str
        assert ours == str(theirs)
    elif isinstance(theirs, np.ndarray):
        np.testing.assert_array_equal(ours, theirs, strict=True)
    elif isinstance(theirs, dict):
        assert type(ours) is type(theirs)
        assert len(ours) == len(theirs)
        for (key, value), (their_key, their_value) in zip(ours.items(), theirs.items(), strict=True):
            assert_same(key, their_key)
            assert_same(value, their_value)
        if isinstance(theirs, collections.defaultdict):
            assert isinstance(ours, collections.defaultdict)
            assert ours.default_factory is theirs.default_factory
    elif isinstance(theirs, list | tuple | collections.deque):
        assert type(ours) is (tuple if isinstance(theirs, torch.Size) else type(theirs))
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    elif isinstance(theirs, argparse.Namespace):
        assert type(ours) is argparse.Namespace
        assert_same(vars(ours), vars(theirs))
    else:
        assert type(ours) is type(theirs)
        assert ours == theirs
