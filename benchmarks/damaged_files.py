"""Damaged and hostile files, made of real ones: input N of a seed is the same file wherever it is made."""

import argparse
import collections
import datetime
import io
import json
import pickle
import pickletools
import random
import struct
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxopt_port.torch_interop import save, save_safetensors
from jaxopt_port.torch_interop.files.safetensors_file import TYPES

Random = random.Random
Records = list[tuple[str, bytes]]

VALUES = [0, 1, 2, 4, 255, 256, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64, -1, -(2**31), -(2**63)]
NAMES = [
    *(
        "os system",
        "posix system",
        "builtins eval",
        "__builtin__ exec",
        "builtins getattr",
        "torch._utils _rebuild_tensor",
    ),
    *("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor_v3", "torch._utils _rebuild_sparse_tensor"),
    *("torch FloatStorage", "torch BoolStorage", "torch.storage UntypedStorage", "torch float32", "torch float8_e5m2"),
    *(
        "collections OrderedDict",
        "collections Counter",
        "collections defaultdict",
        "__builtin__ set",
        "__builtin__ bytearray",
    ),
    *("_codecs encode", "_codecs decode", "torch Size", "torch device", "numpy.core.multiarray scalar", "jax jit"),
    *("numpy._core.multiarray _reconstruct", "numpy ndarray", "numpy dtype", "numpy._core.numeric _frombuffer"),
    *("torch._utils _rebuild_qtensor", "torch._tensor _rebuild_from_type_v2", "torch Tensor", "torch QInt8Storage"),
    *("argparse Namespace", "pathlib PosixPath", "datetime datetime", "datetime timedelta", "collections deque"),
    *("__builtin__ frozenset", "__builtin__ xrange", "__builtin__ slice", "__builtin__ list", "made.up Thing"),
]
OPCODES = [
    *(pickle.MARK, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.EMPTY_TUPLE, pickle.EMPTY_LIST),
    *(pickle.EMPTY_DICT, pickle.APPEND, pickle.APPENDS, pickle.SETITEM, pickle.SETITEMS, pickle.REDUCE, pickle.BUILD),
    *(pickle.BINPERSID, pickle.NONE, pickle.NEWTRUE, pickle.STOP, pickle.POP, pickle.DUP, pickle.NEWOBJ),
    *(pickle.EMPTY_SET, pickle.ADDITEMS, pickle.MEMOIZE, pickle.STACK_GLOBAL, b"\x80\x04", b"\xff"),
    *(pickle.NEWOBJ_EX, pickle.FROZENSET, pickle.POP_MARK, b"U\3abc", b"C\3abc", b"\x8c\3abc"),
]


def seeds() -> list[bytes]:
    """Real files: ours and, where torch is installed, torch's.

    They are the same in every process, but for the names of storages in the format from before torch 1.6, which are
    their addresses.
    """
    shared = np.arange(12, dtype=np.float32).reshape(3, 4)
    state = {"step": np.array(3.0, np.float32), "exp_avg": jnp.ones((2, 3), jnp.bfloat16)}
    group = {"lr": 0.1, "betas": (0.9, 0.999), "params": [0, 1], "foreach": None, "maximize": False}
    ours = {
        "model": collections.OrderedDict(weight=shared, tied=shared.T, part=shared[1:, ::2], mask=np.ones(3, bool)),
        "optimizer": {"state": {0: state}, "param_groups": [group]},
        "scheduler": {"milestones": collections.Counter({3: 1}), "last_epoch": 2**70, "best": float("inf")},
        "rest": [b"bytes", bytearray(b"x"), {1, 2}, 1 + 2j, np.dtype(np.float32), np.ones(3, np.uint16)],
    }
    tensors = {"a": shared, "b": np.ones(3, bool), "c.weight": jnp.ones((2, 3), jnp.bfloat16), "d": np.zeros((0, 2))}
    files = [_in_memory(save, ours), _in_memory(save, []), _in_memory(save_safetensors, tensors)]
    try:
        import torch
    except ImportError:
        return files
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    torch.stack([p.sum() for p in model.parameters()]).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5])
    whole = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
    whole |= {"size": torch.Size([2, 3]), "device": torch.device("cuda:1"), "rng": torch.get_rng_state()[:64].clone()}
    whole |= {
        "best": np.float64(0.5),
        "array": shared.T,
        "flags": np.ones(3, bool),
        "empty": shared[:0],
        "swapped": shared.astype(">f8"),
    }
    script = {
        "args": argparse.Namespace(lr=0.1, out=Path("runs"), seen=range(3), kinds=frozenset((1, 2))),
        "queue": collections.deque([1, 2], maxlen=3),
        "losses": collections.defaultdict(list, {(0, "a"): [0.5]}),
        "start": datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
        "texts": [np.str_("a"), np.array(["b", "cd"]), np.dtype(">f4"), torch.__version__],
        "parts": [torch.eye(2).to_sparse(), torch.ones(2, dtype=torch.complex64).conj(), torch.empty(1, device="meta")],
        "module": torch.nn.Linear(1, 2),
        "buffer": torch.nn.Buffer(torch.ones(2)),
    }

    def write_old(obj: Any, path: str) -> None:
        torch.save(obj, path, _use_new_zipfile_serialization=False)

    def write_5(obj: Any, path: str) -> None:
        torch.save(obj, path, pickle_protocol=5)

    return [
        *files,
        _in_memory(torch.save, whole),
        _in_memory(torch.save, list(model.parameters())),
        _in_memory(torch.save, script),
        _in_memory(write_5, script),
        _in_memory(write_old, whole),
        _in_memory(write_old, script),
    ]


def _in_memory(write: Callable[..., None], obj: Any) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        write(obj, f"{folder}/x.pt")
        return Path(folder, "x.pt").read_bytes()


# Mutations of bytes.


def flip(data: bytes, rng: Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        out[rng.randrange(len(out))] = rng.choice((rng.randrange(256), 0, 255))
    return bytes(out)


def flip_directory(data: bytes, rng: Random) -> bytes:
    """Bytes of the directory, most of which are sizes and offsets."""
    start = data.rfind(b"PK\1\2", 0, max(data.rfind(b"PK\1\2") - rng.randrange(len(data) // 2), 60))
    start = max(start, 0) if rng.random() < 0.7 else max(data.rfind(b"PK\5\6"), 0)
    return data[:start] + flip(data[start:], rng)


def truncate(data: bytes, rng: Random) -> bytes:
    return data[: rng.randrange(len(data))] if rng.random() < 0.8 else data[rng.randrange(len(data)) :]


def splice(data: bytes, rng: Random) -> bytes:
    """Cut a piece out, double it, or move it."""
    start, end = sorted(rng.randrange(len(data)) for _ in range(2))
    piece, at = data[start:end], rng.randrange(len(data))
    return rng.choice(
        (data[:start] + data[end:], data[:at] + piece + data[at:], data[:start] + rng.randbytes(9) + data[end:])
    )


# Mutations of records, in a zip that is sound.


def mutate_records(data: bytes, rng: Random) -> bytes:
    records = _records(data)
    at = rng.randrange(len(records))
    name, content = records[at]
    kind = rng.randrange(7)
    if kind == 0:
        del records[at]
    elif kind == 1:
        records.insert(at, records[rng.randrange(len(records))])
    elif kind == 2:
        records[at] = (rng.choice((name + "x", "x/" + name, "", "/", rng.choice(records)[0], name.upper())), content)
    elif kind == 3:
        records[at] = (name, rng.choice((b"", content[:-1], content + b"\0", content * 2, bytes(len(content)), b"big")))
    elif kind == 4:
        records = [(name, b"big" if name.endswith("byteorder") else content) for name, content in records]
    elif kind == 5:
        return _zip(records, compress=rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)))
    else:
        return _point_elsewhere(_zip(records), rng)
    return _zip(records)


def _point_elsewhere(data: bytes, rng: Random) -> bytes:
    """A directory entry with another size or offset, consistent or not."""
    entries = [at for at in range(len(data)) if data.startswith(b"PK\1\2", at)]
    out = bytearray(data)
    source, target = rng.choice(entries), rng.choice(entries)
    if rng.random() < 0.5:  # two records in one place
        out[target + 16 : target + 28] = data[source + 16 : source + 28]
        out[target + 42 : target + 46] = data[source + 42 : source + 46]
    else:
        size = struct.pack("<I", rng.choice(VALUES) % 2**32)
        for field in rng.sample((16, 20, 24, 42), rng.randrange(1, 4)) if rng.random() < 0.5 else (20, 24):
            out[target + field : target + field + 4] = size
    return bytes(out)


# Mutations of the pickle, in a file that is sound.


def mutate_pickle(data: bytes, rng: Random) -> bytes:
    records = _records(data)
    at = next(i for i, (name, _) in enumerate(records) if name.endswith("data.pkl"))
    name, pickled = records[at]
    records[at] = name, _mutated(pickled, rng)
    return _zip(records)


def _mutated(pickled: bytes, rng: Random) -> bytes:
    positions = [position for _, _, position in pickletools.genops(pickled)]
    parts = [pickled[start:end] for start, end in zip(positions, [*positions[1:], len(pickled)], strict=True)]
    for _ in range(rng.choice((1, 1, 2, 3, 10))):
        _mutate_operations(parts, rng)
    return b"".join(parts)


# Mutations of the pickles of the format from before torch 1.6, and of the bytes behind them.


def mutate_old(data: bytes, rng: Random) -> bytes:
    pickles, rest = _pickles(data)
    at = rng.choice((0, 1, 2, 3, 3, 3, 3, 3, 4))
    pickles[at] = _mutated(pickles[at], rng)
    return b"".join(pickles) + rest


def random_old(data: bytes, rng: Random) -> bytes:
    """A program of our opcodes alone, for one of the pickles."""
    pickles, rest = _pickles(data)
    pickles[rng.choice((2, 3, 3, 3, 4))] = b"".join(
        [pickle.PROTO + b"\2", *(_operation(rng) for _ in range(rng.randrange(1, 200))), pickle.STOP]
    )
    return b"".join(pickles) + rest


def mutate_storages(data: bytes, rng: Random) -> bytes:
    """The sizes before the bytes of the storages, and the bytes."""
    pickles, rest = _pickles(data)
    at = rng.randrange(max(len(rest) - 8, 1))
    size = struct.pack("<q", rng.choice((rng.choice(VALUES) % 2**63, rng.randrange(100))))
    return b"".join(pickles) + rng.choice((flip(rest, rng), rest[:at] + size + rest[at + 8 :], rest[:at], rest[:-1]))


def _pickles(data: bytes) -> tuple[list[bytes], bytes]:
    file = io.BytesIO(data)
    pickles = []
    for _ in range(5):
        start = file.tell()
        collections.deque(pickletools.genops(file), 0)
        pickles.append(data[start : file.tell()])
    return pickles, data[file.tell() :]


# Mutations of the header of a safetensors file.


def mutate_header(data: bytes, rng: Random) -> bytes:
    length = int.from_bytes(data[:8], "little")
    text, rest = data[8 : 8 + length], data[8 + length :]
    header = json.loads(text)
    name = rng.choice([key for key in header if key != "__metadata__"])
    number = rng.choice((*VALUES, 1.5, None, True, "3", [1], 10**400))
    kind = rng.randrange(8)
    if kind == 0:
        header[name]["dtype"] = rng.choice((*TYPES, "F4", "", 3, None))
    elif kind == 1:
        header[name]["shape"] = rng.choice(([number], [0, number], [1] * rng.randrange(70), number, {}))
    elif kind == 2:
        header[name]["data_offsets"][rng.randrange(2)] = number
    elif kind == 3:
        header[rng.choice(list(header))] = rng.choice((number, header[name], []))
    elif kind == 4:
        del header[name][rng.choice(list(header[name]))]
    text = json.dumps(header).encode()
    if kind == 5:
        text = rng.choice((flip(text, rng), splice(text, rng), truncate(text, rng)))
    elif kind == 6:
        text = rng.choice((b"[", b'{"a":', b'{"', b"9")) * int(10 ** rng.uniform(0, 4))
    elif kind == 7:
        text = b"{" + b",".join(text.strip()[1:-1] for _ in range(rng.randrange(1, 9))) + b"}"
    size = len(text) if rng.random() < 0.9 else rng.choice(VALUES) % 2**64
    return struct.pack("<Q", size) + text + rest


def random_pickle(data: bytes, rng: Random) -> bytes:
    """A program of our opcodes alone."""
    records = [record for record in _records(data) if not record[0].endswith("data.pkl")]
    parts = [pickle.PROTO + b"\2", *(_operation(rng) for _ in range(rng.randrange(1, 200))), pickle.STOP]
    return _zip([("archive/data.pkl", b"".join(parts)), *records])


def bomb(data: bytes, rng: Random) -> bytes:
    """A short program, many times over: depth, doubling, copying, endless views."""
    times = int(10 ** rng.uniform(0, 3.5))
    name = f"archive/data/{rng.randrange(3)}"
    view = b"ctorch._utils\n_rebuild_tensor_v2\n((X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\x000X\3\0\0\0cpuK\4tQ"
    sizes = b"".join(_integer(rng.choice(VALUES)) for _ in range(rng.randrange(1, 70)))
    zeros = b"K\0" * rng.randrange(1, 70)
    program = rng.choice(
        (
            b"]" * times + b"a" * rng.randrange(times),
            b"(" * times + b"t" * rng.randrange(times),
            b"]q\0" + b"h\0a" * times,
            b"}q\0" + b"".join(b"h\0q\1}q\0K\1h\1sK\2h\1s" for _ in range(times)),
            b"K\1" + b"\x85" * times + b"q\0" + b"}h\0K\1s",
            b"]q\0" + b"".join(b"]q\0(h\0h\0e" for _ in range(times)),
            b"](" + b"K\1" * times + b"eq\0c__builtin__\nset\nq\1" + b"h\1h\0\x85R" * times,
            b"c_codecs\nencode\nX"
            + struct.pack("<I", times)
            + b"a" * times
            + b"X\6\0\0\0latin1\x86q\0"
            + b"h\0R" * times,
            view + _integer(rng.choice(VALUES)) + b"(" + sizes + b"t(" + rng.choice((zeros, sizes)) + b"t\x89NtR",
            b"}" + b"".join(b"\x8a\x09" + struct.pack("<Q", i * (2**61 - 1) % 2**64) + b"\0Ns" for i in range(times)),
            b"r" + struct.pack("<I", rng.choice(VALUES) % 2**32) + b"Nr\xff\xff\xff\xffj\xff\xff\xff\xff",
            b"X" + struct.pack("<I", rng.choice(VALUES) % 2**32) + b"abc",
        )
    )
    return _zip([("archive/data.pkl", b"\x80\2" + program + b"."), ("archive/data/0", bytes(16)), (name, bytes(16))])


def _mutate_operations(parts: list[bytes], rng: Random) -> None:
    at = rng.randrange(1, len(parts))
    kind = rng.randrange(6)
    if kind == 0 and len(parts) > 2:
        del parts[at]
    elif kind == 1:
        parts.insert(at, parts[rng.randrange(len(parts))])
    elif kind == 2:
        other = rng.randrange(1, len(parts))
        parts[at], parts[other] = parts[other], parts[at]
    elif kind == 3:
        parts.insert(at, _operation(rng))
    elif kind == 4 and len(parts[at]) > 1:
        parts[at] = parts[at][:1] + flip(parts[at][1:], rng)
    else:
        parts[at] = _operation(rng)


def _operation(rng: Random) -> bytes:
    kind = rng.randrange(6)
    if kind == 0:
        return _integer(rng.choice(VALUES))
    if kind == 1:
        return pickle.GLOBAL + rng.choice(NAMES).replace(" ", "\n").encode() + b"\n"
    if kind == 2:
        return rng.choice((pickle.BINGET, pickle.BINPUT)) + bytes([rng.randrange(40)])
    if kind == 3:
        return rng.choice((pickle.LONG_BINGET, pickle.LONG_BINPUT)) + struct.pack("<I", rng.choice(VALUES) % 2**32)
    if kind == 4:
        text = rng.choice((b"storage", b"0", b"1", b"cpu", b"_metadata", b"\xff", b""))
        return pickle.BINUNICODE + struct.pack("<I", len(text)) + text
    return rng.choice(OPCODES)


def _integer(x: int) -> bytes:
    return pickle.dumps(x, protocol=2)[2:-1]


def _records(data: bytes) -> Records:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def _zip(records: Records, compress: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    warnings.simplefilter("ignore", UserWarning)  # of two records of one name
    with zipfile.ZipFile(out, "w", compress) as archive:
        for name, content in records:
            archive.writestr(zipfile.ZipInfo(name or "-"), content, compress)
    return out.getvalue()


OF_BYTES = (flip, truncate, splice)
OF_ZIP = (*OF_BYTES, flip_directory, mutate_records, mutate_pickle, mutate_pickle, random_pickle, bomb)
OF_OLD = (*OF_BYTES, mutate_old, mutate_old, random_old, mutate_storages)
OF_SAFETENSORS = (*OF_BYTES, mutate_header, mutate_header)


def make_input(files: list[bytes], seed: int, number: int) -> tuple[str, str, bytes]:
    """The format of the file, the name of the mutation, and the damaged file."""
    rng = Random(f"{seed} {number}")
    data = rng.choice(files)
    kind, mutations = (
        ("zip", OF_ZIP)
        if data.startswith(b"PK")
        else ("old", OF_OLD)
        if data.startswith(b"\x80")
        else ("safetensors", OF_SAFETENSORS)
    )
    mutation = rng.choice(mutations)
    return kind, f"{kind} {mutation.__name__}", mutation(data, rng)
