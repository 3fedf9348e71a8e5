"""torch's format from before 1.6, which torch still writes when it is asked to."""

import io
import pickle
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxopt_port.torch_interop import PtFileError, load, save

torch = pytest.importorskip("torch")

from tests.torch_interop.files.same import assert_same  # noqa: E402
from tests.torch_interop.files.test_pt_file import checkpoint, tensors, values  # noqa: E402


def old(obj: Any) -> bytes:
    file = io.BytesIO()
    torch.save(obj, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


@pytest.mark.parametrize("make", [tensors, values, checkpoint])
def test_every_dtype_shape_and_value(make: Any, tmp_path: Path) -> None:
    obj = make()
    (tmp_path / "a.pt").write_bytes(old(obj))
    ours = load(tmp_path / "a.pt")
    assert_same(ours, obj)
    if make is not tensors:  # torch 2.13 does not read its newer element types back from this format
        assert_same(ours, torch.load(tmp_path / "a.pt", weights_only=False))
    save(ours, tmp_path / "b.pt")
    assert_same(ours, torch.load(tmp_path / "b.pt", weights_only=True))


def test_views_of_one_tensor_are_views_of_one_array() -> None:
    x = torch.arange(12.0).reshape(3, 4)
    ours = load(io.BytesIO(old({"x": x, "turned": x.t(), "row": x[1]})))
    ours["x"][1, 2] = 50
    assert (ours["turned"][2, 1], ours["row"][2]) == (50, 50)


def test_one_file_after_another() -> None:
    file = io.BytesIO(old([1]) + old(torch.ones(2)))
    assert load(file) == [1]
    assert load(file).tolist() == [1, 1]


def parts(data: bytes) -> tuple[bytes, dict[str, Any], bytes]:
    """The first two pickles, what the third says of the machine, and the rest."""
    file = io.BytesIO(data)
    pickle.load(file)
    pickle.load(file)
    at = file.tell()
    return data[:at], pickle.load(file), data[file.tell() :]


def test_a_big_endian_file_is_refused_by_name() -> None:
    first, system, rest = parts(old(torch.ones(2)))
    data = first + pickle.dumps(system | {"little_endian": False}, 2) + rest
    with pytest.raises(PtFileError, match=r'big-endian machine.*map_location="cpu"'):
        load(io.BytesIO(data))


def test_a_cuda_storage_of_old(tmp_path: Path) -> None:
    """torch 0.3 named the device in the type, and wrote a tensor as a part of a larger storage."""
    data = old(torch.arange(6.0))
    data = data.replace(b"ctorch\nFloatStorage\n", b"ctorch.cuda\nFloatStorage\n")
    assert load(io.BytesIO(data)).tolist() == [0, 1, 2, 3, 4, 5]
    view = b"X\1\0\0\0vK\2K\3\x87t"  # ("v", 2, 3): three elements from the second
    at = data.index(b"t", data.index(b"cpu")) if b"Ntq" not in data else data.index(b"Ntq")
    data = data[:at] + view + data[at + 2 :]
    size = data.index(b"K\6\x85")
    data = data[:size] + b"K\3" + data[size + 2 :]
    assert load(io.BytesIO(data)).tolist() == [2, 3, 4]


def test_it_cannot_be_mapped(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(old(torch.ones(2)))
    with pytest.raises(PtFileError, match=r"before torch 1\.6 cannot be mapped: mmap=False"):
        load(tmp_path / "a.pt", mmap=True)


def test_every_beginning_of_a_file_is_refused() -> None:
    data = old({"x": torch.arange(3), "n": [1, "a"]})
    for length in range(len(data)):
        with pytest.raises(PtFileError):
            load(io.BytesIO(data[:length]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.replace(struct.pack("<q", 3) + bytes(8), struct.pack("<q", 4) + bytes(8)), "has 4 elements"),
        (lambda data: re.sub(rb"K\x03(Ntq.Q)", lambda found: b"M\xff\xff" + found[1], data), "larger than the file"),
        (lambda data: data.replace(b"K\3\x85", b"K\4\x85"), "reaches element 3 of a storage of 3"),
        (lambda data: data.replace(b"\x80\2M\xe9\3.", b"\x80\2M\xe8\3."), "version 1000"),
    ],
)
def test_storages_are_those_of_the_tensors(change: Any, message: str) -> None:
    data = old(torch.arange(3))
    assert change(data) != data
    with pytest.raises(PtFileError, match=message):
        load(io.BytesIO(change(data)))


def test_a_bool_is_0_or_1() -> None:
    data = old(torch.tensor([True, False]))
    assert load(io.BytesIO(data)).tolist() == [True, False]
    with pytest.raises(PtFileError, match="neither 0 nor 1"):
        load(io.BytesIO(data[:-1] + b"\2"))


def test_what_python_2_wrote() -> None:
    """Its strings are bytes, and its OrderedDict has the items in its call."""
    program = b"\x80\2ccollections\nOrderedDict\n]](U\1aK\1ea\x85R."
    data = old(0)
    body = data.rindex(b"\x80\2K\0.")
    ours = load(io.BytesIO(data[:body] + program + data[body + 5 :]))
    assert (type(ours).__name__, dict(ours)) == ("OrderedDict", {"a": 1})
    made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85U\1b\x87R"
    kind = b"cnumpy\ndtype\nU\2f8K\0K\1\x87R(K\3U\1<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    for array in (np.arange(3.0), np.zeros(3)):  # whose bytes are no text, and are one
        program = b"\x80\2" + made + b"(K\1K\3\x85" + kind + b"\x89U\x18" + array.tobytes() + b"tb."
        assert load(io.BytesIO(data[:body] + program + data[body + 5 :])).tolist() == array.tolist()
