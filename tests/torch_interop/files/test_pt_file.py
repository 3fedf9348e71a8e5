"""`.pt` files both ways: what torch writes is read, and torch reads what is written."""

import collections
import io
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax.core import FrozenDict

from jaxopt_port.torch_interop import PtFileError, load, save

torch = pytest.importorskip("torch")

from tests.torch_interop.files.same import assert_same  # noqa: E402

TYPES = (
    *("float16", "bfloat16", "float32", "float64", "complex64", "complex128", "bool"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
)
OPTIMIZERS = [x for x in vars(torch.optim).values() if isinstance(x, type) and x is not torch.optim.Optimizer]


def tensors() -> dict[str, Any]:
    """A tensor of each type, and of each shape."""
    words = torch.arange(-8, 8, dtype=torch.int16)
    typed = {name: (words % 2).bool() if name == "bool" else words.to(getattr(torch, name)) for name in TYPES}
    shapes = {str(shape): torch.rand(shape) for shape in ((), (0,), (0, 3), (1,), (2, 3, 4), (1, 1, 5))}
    x = torch.arange(12.0).reshape(3, 4)
    views = {"whole": x, "turned": x.t(), "part": x[1:, ::2], "same": x, "expanded": torch.ones(1).expand(5)}
    return typed | shapes | views | {"sliced": torch.arange(100)[10:20], "parameter": torch.nn.Parameter(torch.ones(2))}


def values() -> dict[Any, Any]:
    """One of every other kind of value."""
    numbers = [0, 1, -1, 255, 256, 65535, 65536, 2**31 - 1, 2**31, -(2**31), -(2**31) - 1, 2**63, -(2**70), 2**500]
    floats = [0.1, -0.0, float("inf"), 5e-324, 1e308]
    texts = ["", "ü", "\n\0", "\ud800", "日本" * 200]
    nested = {"a": [(), [], {}, ((1,), [2])], 0: None, 1.5: True, None: False, b"k": 1 + 2j}
    counts = collections.Counter({30: 1, 80: 2})
    rest = {"bytes": [b"", b"\xff\0", bytearray(b"x"), bytearray()], "set": {1, "a", None}, "counter": counts}
    torchs = {"size": torch.Size([2, 3]), "dtypes": [torch.float32, torch.bfloat16, torch.int64, torch.bool]}
    return {"n": numbers, "f": floats, "t": texts, "x": nested} | rest | torchs


def checkpoint() -> dict[str, Any]:
    """What a training script saves."""
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Embedding(5, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    schedulers = [
        torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5, 5]),
        torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer),
        torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, 10),
    ]
    states = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}
    return states | {
        "schedulers": [each.state_dict() for each in schedulers],
        "epoch": 3,
        "list": list(model.parameters()),
    }


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("make", [tensors, values, checkpoint])
def test_both_ways(make: Any, mmap: bool, tmp_path: Path) -> None:
    first, second = tmp_path / "torch.pt", tmp_path / "ours.pt"
    obj = make()
    torch.save(obj, first)
    ours = load(first, mmap=mmap)
    assert_same(ours, obj)
    save(ours, second)
    assert_same(ours, torch.load(second, weights_only=True, mmap=mmap))
    assert_same(load(second, mmap=mmap), torch.load(first, weights_only=False))


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "complex64"])
def test_every_optimizers_state(dtype: str, tmp_path: Path) -> None:
    for cls in OPTIMIZERS:
        if dtype == "complex64" and cls.__name__ in ("Adafactor", "Muon", "SparseAdam"):
            continue
        parameter = torch.ones(3, 4, dtype=getattr(torch, dtype)).requires_grad_()
        optimizer = cls([parameter])

        def closure(parameter: Any = parameter, sparse: bool = cls.__name__ == "SparseAdam") -> Any:
            loss = (parameter.abs() ** 2).sum()
            (grad,) = torch.autograd.grad(loss, parameter)
            parameter.grad = grad.to_sparse() if sparse else grad
            return loss

        for _ in range(2):
            optimizer.step(closure)
        torch.save(optimizer.state_dict(), tmp_path / "a.pt")
        ours = load(tmp_path / "a.pt")
        assert_same(ours, optimizer.state_dict())
        save(ours, tmp_path / "b.pt")
        theirs = torch.load(tmp_path / "b.pt", weights_only=True)
        assert_same(ours, theirs)
        optimizer.load_state_dict(theirs)


def test_a_modules_metadata_is_kept(tmp_path: Path) -> None:
    state = torch.nn.BatchNorm1d(2).state_dict()
    torch.save(state, tmp_path / "a.pt")
    save(load(tmp_path / "a.pt"), tmp_path / "b.pt")
    assert torch.load(tmp_path / "b.pt", weights_only=True)._metadata == state._metadata


@pytest.mark.parametrize("mmap", [False, True])
def test_views_of_one_tensor_are_views_of_one_array(mmap: bool, tmp_path: Path) -> None:
    x = torch.zeros(3, 4)
    torch.save({"x": x, "turned": x.t(), "row": x[1], "other": torch.zeros(4)}, tmp_path / "a.pt")
    ours = load(tmp_path / "a.pt", mmap=mmap)
    ours["x"][1, 2] = 5
    assert (ours["turned"][2, 1], ours["row"][2], ours["other"][2]) == (5, 5, 0)

    save(ours, tmp_path / "b.pt")
    theirs = torch.load(tmp_path / "b.pt", weights_only=True, mmap=mmap)
    theirs["x"][1, 3] = 7
    assert (theirs["turned"][3, 1], theirs["row"][3], theirs["other"][3]) == (7, 7, 0)
    assert load(tmp_path / "b.pt")["x"][1, 3] == 0  # the file is as it was


def test_arrays_of_all_kinds_are_written(tmp_path: Path) -> None:
    x, backwards = np.arange(6, dtype=np.float32).reshape(2, 3), np.arange(4)[::-1]
    shared = np.zeros(3, np.int32)
    obj = {
        "jax": jnp.full((2, 3), 1.5, jnp.bfloat16),
        "scalar": jnp.float32(2.0),
        "turned": x.T,
        "backwards": backwards,
        "big": np.arange(3, dtype=">i4"),
        "overlapping": [shared[:2], shared[1:], shared.view(np.float32)],
        "broadcast": np.broadcast_to(np.float32(3), (2, 2)),
        "numbers": [np.float32(0.5), np.int64(3), np.bool_(True), ml_dtypes.bfloat16(1.5)],
        "frozen": FrozenDict({"a": {"b": np.arange(2)}}),
        "default": collections.defaultdict(list, {np.int64(1): [2]}),
    }
    save(obj, tmp_path / "a.pt")
    theirs = torch.load(tmp_path / "a.pt", weights_only=True)
    assert theirs["jax"].dtype == torch.bfloat16
    assert theirs["jax"].tolist() == [[1.5] * 3] * 2
    assert (theirs["scalar"].shape, theirs["scalar"].item()) == ((), 2.0)
    assert theirs["turned"].is_contiguous()
    assert theirs["turned"].tolist() == x.T.tolist()
    assert theirs["backwards"].tolist() == [3, 2, 1, 0]
    assert theirs["big"].tolist() == [0, 1, 2]
    assert [each.tolist() for each in theirs["overlapping"]] == [[0, 0], [0, 0], [0.0, 0.0, 0.0]]
    assert theirs["broadcast"].tolist() == [[3, 3], [3, 3]]
    assert theirs["numbers"] == [0.5, 3, True, 1.5]
    assert {type(theirs["frozen"]), type(theirs["frozen"]["a"]), type(theirs["default"])} == {dict}
    assert theirs["frozen"]["a"]["b"].tolist() == [0, 1]
    assert theirs["default"] == {1: [2]}
    assert type(next(iter(theirs["default"]))) is int
    assert list(map(type, theirs["numbers"])) == [float, int, bool, float]


def test_tensors_are_aligned_and_the_same_object_is_the_same_file(tmp_path: Path) -> None:
    obj = {str(n): np.ones(n, np.float32) for n in range(20)}
    for name in ("a.pt", "b.pt"):
        save(obj, tmp_path / name)
    data = (tmp_path / "a.pt").read_bytes()
    assert data == (tmp_path / "b.pt").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        assert archive.testzip() is None
        for entry in archive.infolist():
            name, extra = struct.unpack("<HH", data[entry.header_offset + 26 : entry.header_offset + 30])
            assert (entry.header_offset + 30 + name + extra) % 64 == 0


def test_a_big_endian_file(tmp_path: Path) -> None:
    save({"f": np.arange(3, dtype=np.float32), "c": np.array([1 + 2j]), "b": np.ones(2, np.int8)}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    records["archive/byteorder"] = b"big"
    with zipfile.ZipFile(tmp_path / "b.pt", "w") as archive:
        for name, data in records.items():
            archive.writestr(name, data)
    theirs = torch.load(tmp_path / "b.pt", weights_only=True)
    for mmap in (False, True):
        assert_same(load(tmp_path / "b.pt", mmap=mmap), theirs)


def test_without_checksums(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(torch.arange(3), tmp_path / "a.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert load(tmp_path / "a.pt").tolist() == [0, 1, 2]


@pytest.mark.parametrize("mmap", [False, True])
def test_numpys_numbers_and_arrays(mmap: bool, tmp_path: Path) -> None:
    x = np.arange(6.0).reshape(2, 3)
    arrays = [x, x, x.T, x.astype(">f4"), x > 2, x * 1j, x.astype(np.float16), x[:0], np.array(3), np.zeros(10**4)]
    numbers = [np.float64(0.5), np.float32(0.5), np.int64(-3), np.uint8(7), np.bool_(True), np.complex64(1 + 2j)]
    obj = {"best": numbers, "arrays": arrays, np.int64(3): torch.ones(2)}
    torch.save(obj, tmp_path / "a.pt")
    ours, theirs = load(tmp_path / "a.pt", mmap=mmap), torch.load(tmp_path / "a.pt", weights_only=False)
    for one, other in zip(ours["best"] + ours["arrays"], theirs["best"] + theirs["arrays"], strict=True):
        assert type(one) is type(other)
        np.testing.assert_array_equal(one, other, strict=True)
    assert ours["arrays"][1] is ours["arrays"][0]
    ours["arrays"][0][0, 0] = 5  # they may be written to
    assert list(ours) == list(theirs)
    save(ours, tmp_path / "b.pt")
    assert torch.load(tmp_path / "b.pt", weights_only=True)["best"] == [each.item() for each in numbers]


def test_a_torchscript_program_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in ("model/data.pkl", "model/constants.pkl", "model/code/x.py"):
            archive.writestr(name, b"")
    (tmp_path / "a.pt").write_bytes(buffer.getvalue())
    with pytest.raises(PtFileError, match="TorchScript"):
        load(tmp_path / "a.pt")


def test_no_torch_is_needed(tmp_path: Path) -> None:
    torch.save(checkpoint(), tmp_path / "a.pt")
    code = f"""
import sys
sys.modules["torch"] = None
from jaxopt_port.torch_interop import load, save
save(load({str(tmp_path / "a.pt")!r}), {str(tmp_path / "b.pt")!r})
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    theirs = torch.load(tmp_path / "b.pt", weights_only=True)
    assert list(theirs) == list(checkpoint())
