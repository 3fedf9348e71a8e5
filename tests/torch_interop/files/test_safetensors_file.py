"""safetensors files both ways, against the safetensors package with torch."""

import json
import struct
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from jaxopt_port.torch_interop import PtFileError, load, load_safetensors, save, save_safetensors

TYPES = (
    *("float16", "bfloat16", "float32", "float64", "complex64", "bool"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
)


@pytest.mark.parametrize("mmap", [False, True])
def test_every_type_and_shape_both_ways(mmap: bool, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    import safetensors.torch as package
    from safetensors import safe_open

    from tests.torch_interop.files.same import assert_same

    words = torch.arange(-8, 8, dtype=torch.int16)
    theirs = {name: (words % 2).bool() if name == "bool" else words.to(getattr(torch, name)) for name in TYPES}
    theirs |= {str(shape): torch.rand(shape) for shape in ((), (0,), (0, 3), (1,), (2, 3, 4))}
    package.save_file(theirs, tmp_path / "a.safetensors")
    ours = load_safetensors(tmp_path / "a.safetensors", mmap=mmap)
    assert ours.keys() == theirs.keys()
    for name, x in theirs.items():
        assert_same(ours[name], x)
    save_safetensors({name: ours[name] for name in theirs}, tmp_path / "b.safetensors")
    back = package.load_file(tmp_path / "b.safetensors")
    for name, x in theirs.items():
        assert_same(ours[name], back[name])
        assert back[name].dtype == x.dtype
    again = load_safetensors(tmp_path / "b.safetensors", mmap=mmap)
    assert list(again) == list(theirs)  # the order is kept
    assert all(x.flags.aligned for x in again.values())
    again["float32"][0] = 5  # it may be written to, and the file is as it was
    assert load_safetensors(tmp_path / "b.safetensors")["float32"][0] == -8
    with safe_open(tmp_path / "b.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_parts_by_their_index(tmp_path: Path) -> None:
    parts = {"1.safetensors": {"a": np.ones(2), "c": np.zeros(1)}, "2.safetensors": {"b": np.arange(3)}}
    for name, tensors in parts.items():
        save_safetensors(tensors, tmp_path / name)
    index = tmp_path / "model.safetensors.index.json"
    weights = {"a": "1.safetensors", "b": "2.safetensors", "c": "1.safetensors"}
    index.write_text(json.dumps({"metadata": {}, "weight_map": weights}))
    for source in (index, tmp_path):
        ours = load_safetensors(source, mmap=source == index)
        assert {name: x.tolist() for name, x in ours.items()} == {"a": [1, 1], "b": [0, 1, 2], "c": [0]}
        assert list(ours) == ["a", "b", "c"]
    for changed, message in (
        (weights | {"a": "../1.safetensors"}, "not a file beside the index"),
        (weights | {"d": "2.safetensors"}, "d is not in 2.safetensors"),
        ({"a": "1.safetensors"}, "c is in 1.safetensors, where the index does not have it"),
        ({"a": 1}, "no weight_map"),
    ):
        index.write_text(json.dumps({"weight_map": changed}))
        with pytest.raises(PtFileError, match=message):
            load_safetensors(index)


def test_arrays_of_all_kinds_are_written(tmp_path: Path) -> None:
    x = np.arange(6, dtype=">f4").reshape(2, 3)
    tensors = {
        "jax": jnp.ones(2, jnp.bfloat16),
        "turned": x.T,
        "one": np.float32(2),
        "f8": x.astype(ml_dtypes.float8_e5m2),
    }
    save_safetensors(tensors, tmp_path / "a.safetensors")
    ours = load_safetensors(tmp_path / "a.safetensors")
    for name, array in tensors.items():
        np.testing.assert_array_equal(ours[name], np.asarray(array))
        assert ours[name].dtype == np.asarray(array).dtype.newbyteorder("<")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a": np.ones(1, complex)}, "a is an array of complex128, which safetensors files do not have"),
        ({"a": {"b": np.ones(1)}}, "a is a dict: a safetensors file has one level of names"),
        ({"a": [1.0]}, "a is a list, not an array"),
        ({1: np.ones(1)}, "1 is not a name"),
        ({"__metadata__": np.ones(1)}, "is not a name"),
        ({"\ud800": np.ones(1)}, "is not a name"),
        ({"a": np.array(["x"])}, "a is an array of <U1"),
    ],
)
def test_what_cannot_be_written(tensors: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(PtFileError, match=message):
        save_safetensors(tensors, tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


def file_of(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(first: int, last: int, shape: Any = (1,), dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"1234567", "its header does not fit"),
        (struct.pack("<Q", 2**63) + b"{}", "its header does not fit"),
        (file_of(b"[" * 100_000), "the header is not JSON"),
        (file_of(b'{"a": ' * 100_000), "the header is not JSON"),
        (file_of(b"9" * 5000), "the header is not JSON"),
        (file_of([]), "is not a dict"),
        (file_of(b'{"a":0,"a":0}'), "one name twice"),
        (file_of({"a": 1}), "is described by 1"),
        (file_of({"a": entry(0, 4)}), "the tensors are of 4 bytes, and the file has 0"),
        (file_of({"a": entry(0, 4)}, bytes(5)), "the tensors are of 4 bytes, and the file has 5"),
        (file_of({"a": entry(0, 4), "b": entry(0, 4)}, bytes(8)), "b is not where the tensor before it ends"),
        (file_of({"a": entry(4, 8)}, bytes(8)), "a is not where"),
        (file_of({"a": entry(4, 0)}, bytes(8)), "has -4 bytes"),
        (file_of({"a": entry(0, 4, [2])}, bytes(4)), "has 4 bytes"),
        (file_of({"a": entry(0, 4, [-1, -1])}, bytes(4)), "has the shape"),
        (file_of({"a": entry(0, 4, [True])}, bytes(4)), "has the shape"),
        (file_of({"a": entry(0, 4, [1.0])}, bytes(4)), "has the shape"),
        (file_of({"a": entry(0, 4, [1] * 65)}, bytes(4)), "has the shape"),
        (file_of({"a": entry(0, 4, 1)}, bytes(4)), "has the shape"),
        (file_of({"a": entry(0, 0, [0, 2**62, 2**62])}), "has 0 bytes"),
        (file_of({"a": entry(0, 4, [8], "F4")}, bytes(4)), "is of type 'F4', which NumPy does not have"),
        (file_of({"a": entry(0, 1, [1], "BOOL")}, b"\2"), "neither 0 nor 1"),
        (file_of({"a": {"dtype": "F32", "shape": [1]}}, bytes(4)), "is described by"),
    ],
)
def test_damaged_files(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(data)
    for mmap in (False, True):
        with pytest.raises(PtFileError, match=rf"a\.safetensors: .*{message}"):
            load_safetensors(tmp_path / "a.safetensors", mmap=mmap)


def test_each_reader_names_the_other(tmp_path: Path) -> None:
    save_safetensors({"a": np.ones(2)}, tmp_path / "a")
    with pytest.raises(PtFileError, match=r"load_safetensors\(path\) reads it"):
        load(tmp_path / "a")
    save({"a": np.ones(2)}, tmp_path / "a")
    with pytest.raises(PtFileError, match=r"torch\.save: load\(path\) reads it"):
        load_safetensors(tmp_path / "a")


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"])).filter(lambda name: name != "__metadata__"),
        arrays.arrays(
            st.sampled_from(["float32", "float64", "float16", "int8", "uint16", "int64", "bool", "complex64"]),
            arrays.array_shapes(min_dims=0, min_side=0, max_side=4),
        ),
        max_size=5,
    )
)
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, np.ndarray]) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    save_safetensors(tensors, path)
    for mmap in (False, True):
        ours = load_safetensors(path, mmap=mmap)
        assert list(ours) == list(tensors)
        for name, x in tensors.items():
            assert (ours[name].dtype, ours[name].shape, ours[name].tobytes()) == (x.dtype, x.shape, x.tobytes())
