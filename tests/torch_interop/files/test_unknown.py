"""What training scripts put into checkpoints beside tensors: read outright, or as a placeholder."""

import argparse
import collections
import datetime
import enum
import pathlib
import sys
import types
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from jaxopt_port.torch_interop import PtFileError, Unknown, load

torch = pytest.importorskip("torch")

from tests.torch_interop.files.same import assert_same  # noqa: E402

UTC = datetime.UTC
EAST = datetime.timezone(datetime.timedelta(hours=5, minutes=30), "east")
PLAIN = {
    "namespace": argparse.Namespace(lr=0.1, nested=argparse.Namespace(names=["a"]), path=Path("/a/b")),
    "paths": [Path("a"), Path("/"), pathlib.PurePosixPath("b/c"), pathlib.PureWindowsPath("C:/x")],
    "times": [datetime.datetime(2026, 11, 26, 1, 2, 3, 4), datetime.datetime.now(UTC), datetime.datetime.now(EAST)],
    "dates": [datetime.date(2020, 2, 29), datetime.time(1, 2), datetime.timedelta(1, 2, 3), UTC, EAST],
    "defaults": [
        collections.defaultdict(kind, {"a": 1}) for kind in (None, list, dict, int, float, set, collections.OrderedDict)
    ],
    "queues": [collections.deque([1, [2]]), collections.deque([1, 2], maxlen=3), collections.deque()],
    "sets": [frozenset([1, "a"]), frozenset(), {(1, 2)}],
    "ranges": [range(3), range(5, -5, -2), slice(1, None, 2), slice(None)],
    "complex": [1 + 2j, complex("nan").imag],
    "torchs": [torch.device("cuda:1"), torch.device("cpu"), torch.float32, torch.bfloat16, torch.Size([2, 3])],
    "versions": [torch.__version__, torch.strided, torch.sparse_coo],
    "texts": [np.str_("ab"), np.str_(""), np.bytes_(b"x"), np.array(["a", "日本"]), np.array([b"x"])],
    "dtypes": [np.dtype(code) for code in ("f4", ">f8", "?", "u1", "c16", "U3", ">U3", "S2")],
    "keys": {(1, "a", (2, 3)): 1, torch.float32: 2, frozenset([1]): 3, 1.5: 4, 1j: 5, Path("a"): 6, np.str_("s"): 7},
    "counter": collections.Counter("abca"),
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("name", PLAIN)
def test_read_outright(name: str, old: bool, protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save(PLAIN[name], path, _use_new_zipfile_serialization=not old, pickle_protocol=protocol)
    assert_same(load(path), torch.load(path, weights_only=False))


class Config:
    """A class of the user's."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


class Kind(enum.Enum):
    FAST = "fast"


class Settings(dict):
    pass


class Names(list):
    pass


class Point(NamedTuple):
    x: int


class Slots:
    __slots__ = ("a",)


class Wrapped(torch.Tensor):
    pass


def saved(obj: Any, path: Path) -> Path:
    torch.save(obj, path)
    return path


def test_a_placeholder_shows_what_the_file_says(tmp_path: Path) -> None:
    slots, loop = Slots(), Config(depth=1)
    slots.a = 3
    vars(loop)["me"] = loop
    obj = {
        "config": Config(lr=0.1, weight=torch.arange(3)),
        "kind": Kind.FAST,
        "settings": Settings(a=1, b=[2]),
        "names": Names([1, 2]),
        "point": Point(3),
        "slots": slots,
        "class": Config,
        "function": saved,
        "loop": loop,
        "objects": np.array([1, "a", None], dtype=object),
        "factory": collections.defaultdict(Config, a=1),
        "day": np.datetime64("2020-01-01"),
        "keys": {Kind.FAST: 1},
        "after": torch.ones(2),
    }
    ours = load(saved(obj, tmp_path / "a.pt"), unknown="keep")
    assert list(ours) == list(obj)
    assert ours["after"].tolist() == [1, 1]
    own = {key: x for key, x in ours.items() if isinstance(x, Unknown)}
    assert set(own) == set(obj) - {"keys", "after"}
    here = __name__
    assert (own["config"].module, own["config"].name, own["config"].args) == (here, "Config", ())
    assert own["config"].state["lr"] == 0.1
    assert own["config"].state["weight"].tolist() == [0, 1, 2]
    assert (own["kind"].full, own["kind"].args) == (f"{here}.Kind", ("fast",))
    assert own["settings"].items == [("a", 1), ("b", [2])]
    assert own["names"].items == [1, 2]
    assert own["point"].args == (3,)
    assert own["slots"].state == (None, {"a": 3})
    assert (own["class"].full, own["class"].args) == (f"{here}.Config", None)
    assert own["function"].full == f"{here}.saved"
    assert own["loop"].state["me"] is own["loop"]
    assert own["objects"].full == "numpy.ndarray"
    assert own["objects"].state[-1] == [1, "a", None]
    assert own["factory"].items == [("a", 1)]
    (key,) = ours["keys"]
    assert isinstance(key, Unknown)
    assert repr(own["config"]) == f"Unknown({here}.Config, args=(), state={{'lr': 0.1, 'weight': array([0, 1, 2])}})"
    assert len(repr(own["loop"])) < 300


def test_a_whole_module_is_kept(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    ours = load(saved({"model": module, "epoch": 3}, tmp_path / "a.pt"), unknown="keep")
    assert ours["epoch"] == 3
    linear = ours["model"].state["_modules"]["0"]
    assert linear.full == "torch.nn.modules.linear.Linear"
    assert_same(linear.state["_parameters"]["weight"], module[0].weight)


@pytest.mark.parametrize("old", [False, True])
def test_tensors_that_are_not_plain_have_their_parts(old: bool, tmp_path: Path) -> None:
    x = torch.arange(6.0).reshape(2, 3)
    z = torch.tensor([1 + 2j, 3j], dtype=torch.complex64)
    obj = {
        "conj": z.conj(),
        "neg": z.conj().imag,
        "sparse": torch.eye(2).to_sparse(),
        "csr": torch.eye(2).to_sparse_csr(),
        "quantized": torch.quantize_per_tensor(x, 0.5, 1, torch.qint8),
        "channels": torch.quantize_per_channel(x, torch.ones(2), torch.zeros(2), 0, torch.quint8),
        "nested": torch.nested.nested_tensor([torch.ones(2), torch.zeros(3)]),
        "meta": torch.empty(2, 3, device="meta"),
        "half": torch.zeros(2, dtype=torch.complex32),
        "storage": x.untyped_storage(),
        "subclass": torch.ones(2).as_subclass(Wrapped),
    }
    for key, value in obj.items():
        if old and key in ("nested", "half"):  # torch does not write them so
            continue
        torch.save({key: value}, tmp_path / "a.pt", _use_new_zipfile_serialization=not old)
        ours = load(tmp_path / "a.pt", unknown="keep")[key]
        assert isinstance(ours, Unknown), key
        obj[key] = ours
        with pytest.raises(PtFileError, match=rf'a\.pt: \["{key}"\] is .*load\(path, unknown="keep"\) reads the rest'):
            load(tmp_path / "a.pt")
    values, what = obj["conj"].args
    assert_same(values, z)
    assert what == {"conj": True}
    assert_same(obj["neg"].args[0], z.imag)
    assert obj["neg"].args[1] == {"neg": True}
    layout, (indices, entries, size, _coalesced) = obj["sparse"].args
    assert (layout, indices.tolist(), entries.tolist(), size) == ("torch.sparse_coo", [[0, 1]] * 2, [1, 1], (2, 2))
    assert obj["csr"].args[0] == "torch.sparse_csr"
    integers, (scheme, scale, zero) = obj["quantized"].args
    assert (integers.tolist(), scheme.name, scale, zero) == ([[1, 3, 5], [7, 9, 11]], "per_tensor_affine", 0.5, 1)
    assert obj["channels"].args[0].tolist() == x.tolist()
    if not old:
        assert obj["nested"].args[0].tolist() == [1, 1, 0, 0, 0]
    assert obj["meta"].args[:2] == (np.float32, (2, 3))
    assert np.frombuffer(obj["storage"].args[0], np.float32).tolist() == x.reshape(-1).tolist()
    assert (obj["subclass"].name, obj["subclass"].args[0].tolist()) == ("Wrapped", [1, 1])


def test_plain_attributes_and_buffers(tmp_path: Path) -> None:
    weight, tensor = torch.nn.Parameter(torch.ones(2)), torch.zeros(3)
    weight._is_hf_initialized = True  # transformers
    tensor.tag = "x"
    buffer = torch.nn.Buffer(torch.ones(1))
    ours = load(saved({"weight": weight, "tensor": tensor, "buffer": buffer}, tmp_path / "a.pt"))
    assert {key: x.tolist() for key, x in ours.items()} == {"weight": [1, 1], "tensor": [0, 0, 0], "buffer": [1]}
    tensor.mask = torch.ones(3)
    ours = load(saved(tensor, tmp_path / "a.pt"), unknown="keep")
    assert (ours.full, ours.args[0].tolist()) == ("torch.Tensor", [0, 0, 0])
    assert ours.state["mask"].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("obj", "message"),
    [
        (
            {"hyper_parameters": {"cfg": Config()}},
            rf'\["hyper_parameters"\]\["cfg"\] is {__name__}\.Config, which is not',
        ),
        ({"a": [0, (1, Kind.FAST)]}, r'\["a"\]\[1\]\[1\] is .*Kind, which is not plain data'),
        ({0: argparse.Namespace(cfg=Config())}, r"\[0\]\.cfg is .*Config"),
        ({"q": collections.deque([Config()])}, r'\["q"\]\[0\] is .*Config'),
        ({"q": {Kind.FAST: 0}}, r'\["q"\], of which a key is .*Kind'),
        (Config(), "the object is .*Config"),
        (print, r"the object is builtins.print itself, a class or a function"),
        ({"m": torch.nn.Linear(1, 2)}, r'\["m"\] is torch.nn.modules.linear.Linear, .*module.state_dict\(\) is plain'),
        (torch.eye(2).to_sparse(), r"the object is .*a sparse tensor: x.to_dense\(\) is plain"),
        (torch.ones(1, dtype=torch.complex64).conj(), r"the object is .*x.resolve_conj\(\).resolve_neg\(\) is plain"),
    ],
)
def test_an_error_says_where_it_stands_and_what_to_do(obj: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(PtFileError, match=rf'a\.pt: {message}.*load\(path, unknown="keep"\)'):
        load(saved(obj, tmp_path / "a.pt"))


def test_unknown_is_error_or_keep(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown='skip'"):
        load(saved(1, tmp_path / "a.pt"), unknown="skip")  # pyright: ignore[reportArgumentType]


def test_nothing_is_imported_or_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that would raise when anything of it is touched, and one that is not there."""

    class Trap(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"{name} was looked up")

    made = types.ModuleType("made_up")
    made.Thing = type("Thing", (), {"__module__": "made_up", "__reduce__": lambda self: (made.run, ("x",))})  # pyright: ignore[reportAttributeAccessIssue]
    made.run = types.FunctionType((lambda x: x).__code__, {}, "run")  # pyright: ignore[reportAttributeAccessIssue]
    made.run.__module__ = "made_up"
    made.run.__qualname__ = "run"
    monkeypatch.setitem(sys.modules, "made_up", made)
    path = saved({"thing": made.Thing()}, tmp_path / "a.pt")
    for module in (Trap("made_up"), None):
        monkeypatch.setitem(sys.modules, "made_up", module)
        ours = load(path, unknown="keep")["thing"]
        assert (ours.full, ours.args) == ("made_up.run", ("x",))
