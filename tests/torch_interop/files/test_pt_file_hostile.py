"""Damaged and hostile `.pt` files: one error, nothing run, and memory in proportion to the file."""

import copy
import os
import pickle
import struct
import tracemalloc
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from benchmarks.fuzz_pt_file import fuzz
from jaxopt_port.torch_interop import PtFileError, Unknown, load, save
from jaxopt_port.torch_interop.files import pickle_writer

MANY = 20_000
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"
STORAGE = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\x000X\3\0\0\0cpuK\4tQ"  # of 4 elements


def write_pickle(path: Path, program: bytes) -> Path:
    """A sound file around a pickle, with one storage of 16 bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\2" + program + b".")
        archive.writestr("archive/data/0", bytes(16))
    return path


def integers(*values: int) -> bytes:
    return b"(" + b"".join(pickle.dumps(x, 2)[2:-1] for x in values) + b"t"


def tensor(offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> bytes:
    return TENSOR + b"(" + STORAGE + integers(offset)[1:-1] + integers(*shape) + integers(*strides) + b"\x89NtR"


@pytest.mark.parametrize("name", ["os system", "posix system", "builtins eval", "__builtin__ exec", "builtins getattr"])
def test_nothing_is_run(name: str, tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    command = f"touch {witness}".encode()
    program = b"c" + name.replace(" ", "\n").encode() + b"\nX" + struct.pack("<I", len(command)) + command + b"\x85R"
    with pytest.raises(PtFileError, match="which is not plain data"):
        load(write_pickle(tmp_path / "a.pt", program))
    assert not witness.exists()


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (0, (5,), (1,)),
        (1, (4,), (1,)),
        (4, (1,), (1,)),
        (5, (), ()),
        (0, (2, 2), (3, 2)),
        (0, (2,), (2**62,)),
        (2**64, (1,), (1,)),
        (-1, (1,), (1,)),
        (3, (2,), (-1,)),
        (0, (-1,), (1,)),
        (0, (2,), (1, 1)),
        (0, (2**62, 2**62), (0, 0)),
        (0, (0, 2**62, 2**62), (1, 1, 1)),
        (0, (1,) * 65, (1,) * 65),
    ],
)
def test_a_tensor_stays_inside_its_storage(offset: int, shape: Any, strides: Any, tmp_path: Path) -> None:
    path = write_pickle(tmp_path / "a.pt", tensor(offset, shape, strides))
    for mmap in (False, True):
        with pytest.raises(PtFileError, match="tensor"):
            load(path, mmap=mmap)


def test_a_tensor_may_fill_its_storage(tmp_path: Path) -> None:
    for shape, strides in (((4,), (1,)), ((2, 2), (1, 2)), ((1,) * 64, (1,) * 64), ((3,), (0,))):
        assert load(write_pickle(tmp_path / "a.pt", tensor(0, shape, strides))).shape == shape


def numpy_array(shape: bytes, data: bytes, element: bytes = b"f8", order: bytes = b"<") -> bytes:
    """A NumPy array as it is pickled; `h\\0` is the array and `h\\1` its state."""

    def text(x: bytes) -> bytes:
        return b"X" + struct.pack("<I", len(x)) + x

    kind = (
        b"cnumpy\ndtype\n"
        + text(element)
        + b"\x89\x88\x87R(K\3"
        + text(order)
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    )
    made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85" + text(b"b") + b"\x87Rq\0"
    return made + b"(K\1" + shape + kind + b"\x89c_codecs\nencode\n" + text(data) + text(b"latin1") + b"\x86Rtq\1b"


def text_array(shape: bytes, data: bytes, characters: int) -> bytes:
    size = b"J" + struct.pack("<I", 4 * characters)
    return numpy_array(shape, data, b"U%d" % characters).replace(b"J\xff\xff\xff\xff", size, 1)


BOMBS = {
    "a NumPy array larger than its bytes": numpy_array(integers(2), bytes(8)),
    "a NumPy array smaller than its bytes": numpy_array(integers(1), bytes(16)),
    "a NumPy array of no bytes and a huge shape": numpy_array(integers(0, 2**62, 2**62), b""),
    "a NumPy array of a huge shape": numpy_array(integers(2**62, 4), bytes(8)),
    "a NumPy array of less than no size": numpy_array(integers(-2), bytes(16)),
    "a NumPy array of objects": numpy_array(integers(1), bytes(8), b"O8", b"|"),
    "a NumPy array of texts of another size": numpy_array(integers(1), bytes(4), b"U1").replace(
        b"J\xff\xff\xff\xff", b"K\x08", 1
    ),
    "a NumPy array of no texts": text_array(integers(2**40), b"", 0),
    "a NumPy array of what is no text": text_array(integers(1), b"\x7f" * 4, 1),
    "a NumPy array of another order": numpy_array(integers(1), bytes(8), order=b"="),
    "a NumPy bool that is none": numpy_array(integers(2), b"\0\2", b"b1", b"|"),
    "a NumPy array filled again and again": numpy_array(integers(0, MANY), b"") + b"h\1b" * 99,
    "copies into NumPy arrays": b"]("
    + numpy_array(integers(MANY // 8), bytes(MANY))
    + b"cnumpy.core.multiarray\n_reconstruct\nNNN\x87Rh\1b" * 99
    + b"e",
    "a NumPy type for a value": b"cnumpy\ndtype\nX\2\0\0\0f8\x85R",
    "a NumPy array for a class": b"cnumpy\nndarray\n)R",
    "another class of arrays": b"cnumpy\nmatrix\n",
    "a deep list": b"]" * MANY + b"a" * (MANY - 1),
    "a deep tuple": b")" + b"\x85" * MANY,
    "a deep tuple as a key": b"}K\1" + b"\x85" * MANY + b"Ns",
    "a list of itself": b"]q\0h\0a",
    "doubling": b"]" + b"".join(b"q\0](h\0h\0e" for _ in range(64)),
    "doubling tuples": b")" + b"".join(b"q\0h\0\x86" for _ in range(64)),
    "doubling tuples as a key": b"}K\1" + b"".join(b"q\0h\0\x86" for _ in range(64)) + b"Ns",
    "one long list in many places": b"](](" + b"N" * MANY + b"eq\0" + b"h\0" * MANY + b"e",
    "sets of one list": b"](" + b"K\1" * MANY + b"eq\0c__builtin__\nset\nq\1" + b"h\1h\0\x85R" * MANY,
    "copies of one string": b"X"
    + struct.pack("<I", MANY)
    + b"a" * MANY
    + b"q\0"
    + b"c_codecs\nencode\nh\0N\x86R" * 999,
    "a huge array of bytes": b"c__builtin__\nbytearray\n" + b"\x8a\6\0\0\0\0\0\1\x85R",
    "a far memo entry": b"Nr\xff\xff\xff\xffj\xff\xff\xff\xfe",
    "a string that is not there": b"X\xff\xff\xff\xffabc",
    "many marks": b"(" * MANY,
    "long keys": b"}X" + struct.pack("<I", 100_000) + b"a" * 100_000 + b"Ns",
    "keys of one hash": b"}"
    + b"".join(b"\x8a\x0b%bNs" % (i * (2**61 - 1)).to_bytes(11, "little") for i in range(MANY)),
    "shapes of one long tuple": b"(" + b"K\0" * MANY + b"tq\0" + (TENSOR + b"(" + STORAGE + b"K\0h\0h\0\x89NtR") * 999,
    "attributes": b"ccollections\nOrderedDict\n)R}X\4\0\0\0keysNsb",
    "a function for a value": TENSOR,
    "a storage for a value": STORAGE,
    "no memo entry": b"h\7",
    "an empty stack": b"a",
    "two values": b"NN",
    "an unhashable key": b"}]Ns",
    "an odd number of items": b"}(Nu",
    "a list in a dict": b"}(NNNu",
    "a call of a number": b"K\1)R",
    "too many arguments": b"ctorch\nSize\n(NNNtR",
    "not text": b"X\1\0\0\0\xff",
}


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs(bomb: str, mmap: bool, tmp_path: Path) -> None:
    path = write_pickle(tmp_path / "a.pt", BOMBS[bomb])
    tracemalloc.start()
    with pytest.raises(PtFileError, match=r"a\.pt: "):
        load(path, mmap=mmap)
    memory = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert memory < 2**20 + 300 * path.stat().st_size


PLACEHOLDERS = {  # what is inside the limits, in the many forms that it may have
    "one inside another": b"cm\nC\nq\x000N" + b"q\x010h\0h\1\x85\x81" * MANY,
    "one argument for all": b"cm\nC\nq\x000(" + b"N" * MANY + b"tq\x010](" + b"h\0h\1\x81" * MANY + b"e",
    "of themselves": b"cm\nC\nq\x000](" + b"h\0)\x81q\1}X\1\0\0\0ah\1sb" * MANY + b"e",
    "classes": b"](" + b"cm\nC\n" * MANY + b"e",
    "as keys": b"}(" + b"cm\nC\nN" * MANY + b"u",
    "that are filled": b"cm\nC\n)\x81(" + b"N" * MANY + b"e" + b"(" + b"NN" * MANY + b"u",
}


@pytest.mark.parametrize("name", PLACEHOLDERS)
def test_placeholders_take_memory_in_proportion(name: str, tmp_path: Path) -> None:
    path = write_pickle(tmp_path / "a.pt", PLACEHOLDERS[name])
    tracemalloc.start()
    kept = load(path, unknown="keep")
    memory = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert memory < 2**20 + 300 * path.stat().st_size
    first = kept if isinstance(kept, Unknown) else next(iter(kept))
    assert (first.full, len(repr(first)) < 1000) == ("m.C", True)
    with pytest.raises(PtFileError, match=r"m\.C"):
        load(path)


def test_many_keys_of_one_hash(tmp_path: Path) -> None:
    """Tuples of numbers that are the same modulo Python's prime hash alike; a few of them are no attack."""
    tuples = [tuple((x >> i & 1) * (2**61 - 1) for i in range(10)) for x in range(1000)]
    assert len({hash(key) for key in tuples}) == 1
    program = b"}(" + b"".join(integers(*key) + b"N" for key in tuples) + b"u"
    with pytest.raises(PtFileError, match="too many keys of one hash"):
        load(write_pickle(tmp_path / "a.pt", program))
    few = dict.fromkeys(tuples[:50])
    program = b"](" + (b"}(" + b"".join(integers(*key) + b"N" for key in few) + b"u") * 20 + b"e"
    assert load(write_pickle(tmp_path / "a.pt", program)) == [few] * 20


@pytest.mark.parametrize("mmap", [False, True])
def test_records_in_one_place(mmap: bool, tmp_path: Path) -> None:
    """Ten storages that are the same bytes of the file are more than the file."""
    pickled, storages = pickle_writer.write_pickle([np.zeros(10_000), *(np.zeros(10_000) for _ in range(9))])
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", storages[0])
        for number in range(1, 10):
            info = copy.copy(archive.getinfo("archive/data/0"))
            info.filename = f"archive/data/{number}"
            archive.filelist.append(info)
    with pytest.raises(PtFileError, match="the records together are larger than the file"):
        load(tmp_path / "a.pt", mmap=mmap)


def test_every_beginning_of_a_file_is_refused(tmp_path: Path) -> None:
    save({"x": np.arange(3), "n": [1, "a"]}, tmp_path / "a.pt")
    data = (tmp_path / "a.pt").read_bytes()
    for length in range(len(data)):
        (tmp_path / "b.pt").write_bytes(data[:length])
        with pytest.raises(PtFileError, match=r"b\.pt: "):
            load(tmp_path / "b.pt", mmap=length % 2 == 1)


def test_every_flipped_bit_of_a_tensor_is_found(tmp_path: Path) -> None:
    x = np.frombuffer(b"a storage that nothing else is like", np.uint8)
    save(x, tmp_path / "a.pt")
    data = (tmp_path / "a.pt").read_bytes()
    start = data.index(x.tobytes())
    for bit in range(8 * x.size):
        damaged = bytearray(data)
        damaged[start + bit // 8] ^= 1 << bit % 8
        (tmp_path / "b.pt").write_bytes(damaged)
        with pytest.raises(PtFileError, match="its checksum is wrong"):
            load(tmp_path / "b.pt")


def test_a_bool_is_0_or_1(tmp_path: Path) -> None:
    program = tensor(0, (2,), (1,)).replace(b"FloatStorage", b"BoolStorage").replace(b"K\4tQ", b"K\x10tQ")
    assert load(write_pickle(tmp_path / "a.pt", program)).tolist() == [False, False]
    with zipfile.ZipFile(tmp_path / "b.pt", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\2" + program + b".")
        archive.writestr("archive/data/0", b"\2" * 16)
    with pytest.raises(PtFileError, match="neither 0 nor 1"):
        load(tmp_path / "b.pt")


def test_compressed_records_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\2N." + bytes(10**6))
    with pytest.raises(PtFileError, match="compressed"):
        load(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b'\7\0\0\0\0\0\0\0{"a":1}', "in the safetensors format: load_safetensors"),
        (b"<!doctype html><html>", "the file is a web page"),
        (b"GIF89a, a picture", "not of torch.save: it begins with b'GIF89a"),
    ],
)
def test_other_formats_are_named(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(data)
    with pytest.raises(PtFileError, match=message):
        load(tmp_path / "a.pt")


def test_a_file_that_is_not_there_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.pt")


def test_fuzzing() -> None:
    counts = fuzz(1000, seed=1)
    faults = {key: count for key, count in counts.items() if key[1].startswith("FAULT")}
    assert not faults
    assert {result for _, result in counts} == {"loaded", "PtFileError"}


class Point(NamedTuple):
    x: int


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.complex_numbers()
KEYS = st.text() | st.integers(-(2**63), 2**64 - 1) | st.none() | st.booleans() | st.binary()
ARRAYS = arrays.arrays(
    st.sampled_from(["float32", "float64", "float16", "int8", "uint16", "int64", "bool", "complex64"]),
    arrays.array_shapes(min_dims=0, min_side=0, max_side=4),
)
OBJECTS = st.recursive(
    SCALARS | ARRAYS,
    lambda inside: (
        st.lists(inside, max_size=4)
        | st.lists(inside, max_size=4).map(tuple)
        | st.dictionaries(KEYS, inside, max_size=4)
        | st.dictionaries(KEYS, inside, max_size=4).map(OrderedDict)
        | st.dictionaries(KEYS, st.integers(), max_size=3).map(Counter)
        | st.sets(KEYS, max_size=3)
    ),
    max_leaves=20,
)


def form(obj: Any) -> Any:
    """The object with its types, in a form that compares: NaN equals NaN, and 0.0 is not -0.0."""
    if isinstance(obj, np.ndarray):
        return obj.dtype, obj.shape, obj.tobytes()
    if isinstance(obj, dict):
        return type(obj), [(type(key), key, form(value)) for key, value in obj.items()]
    if isinstance(obj, list | tuple):
        return type(obj), [form(each) for each in obj]
    return type(obj), obj if isinstance(obj, set) else repr(obj)


@settings(max_examples=150, deadline=None)
@given(OBJECTS)
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, obj: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "any.pt"
    save(obj, path)
    assert form(load(path)) == form(obj)
    assert form(load(path, mmap=True)) == form(obj)


@pytest.mark.parametrize(
    ("obj", "message"),
    [
        ({"q": [print]}, r"the object\['q'\]\[0\] is a builtins.builtin_function_or_method, which is not plain data"),
        ({"q": np.array(["a"])}, r"the object\['q'\] is an array of <U1, which torch does not have"),
        ([{(1, 2): 3}], r"the object\[0\] has a tuple as a key"),
        (2**5000, "the object is a number of 5001 bits"),
        (np.dtype("datetime64[s]"), "the object is the dtype datetime64"),
        ([np.datetime64("2020")], r"the object\[0\] is a datetime.date, which is not plain data"),
        ({"k": jax.random.key(0)}, r"the object\['k'\] is an array of key<fry>, which torch does not have"),
        ([Point(1)], r"the object\[0\] is a .*Point, which is not plain data"),  # nor does torch read one
    ],
)
def test_what_cannot_be_written(obj: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(PtFileError, match=message):
        save(obj, tmp_path / "a.pt")
    assert not list(tmp_path.iterdir())


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    save({"x": np.ones(1000)}, path)
    mapped = load(path, mmap=True)
    save(mapped, path)  # onto the file that is mapped
    assert load(path)["x"].sum() == 1000
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(PtFileError, match="or one contains itself"):
        save(endless, path)
    assert load(path)["x"].sum() == 1000
    assert os.listdir(tmp_path) == ["a.pt"]
