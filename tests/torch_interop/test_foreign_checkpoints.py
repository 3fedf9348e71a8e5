"""Checkpoints that the libraries around torch wrote (data/make_foreign_checkpoints.py): read as torch reads them.

And an optimizer goes on from each here as in torch, and back.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_port as optim
from jaxopt_port.torch_interop import (
    PtFileError,
    layout,
    load,
    load_optimizer,
    load_scheduler,
    load_trainer,
    optimizer_state_dict,
    save,
    save_safetensors,
)

torch = pytest.importorskip("torch")

from tests.torch_interop.convert import tensors  # noqa: E402
from tests.torch_interop.files.same import assert_same  # noqa: E402

DATA = Path(__file__).parent / "data" / "foreign"
SPREAD = "fsdp_part.pt"
OBJECT = "training_args.bin"
SUFFIXES = (".pt", ".pth", ".ckpt", ".tar", ".bin", ".pkl")
FILES = sorted(x for x in DATA.rglob("*") if x.suffix in SUFFIXES and x.name not in (SPREAD, OBJECT))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(DATA).as_posix())
def test_every_file_is_read_as_torch_reads_it(path: Path) -> None:
    assert_same(load(path), torch.load(path, weights_only=False))


def test_a_part_of_many_processes_is_refused_with_the_remedy() -> None:
    with pytest.raises(PtFileError, match=r'\["model"\]\["embedding\.weight"\] is .*DTensor.*full_state_dict=True'):
        load(DATA / SPREAD)
    part = load(DATA / SPREAD, unknown="keep")["model"]["embedding.weight"]
    assert part.full == "torch.distributed.tensor.DTensor"


def test_an_object_of_a_library_is_a_placeholder() -> None:
    args = load(DATA / "trainer_adamw" / OBJECT, unknown="keep")
    assert args.full == "transformers.training_args.TrainingArguments"
    assert (args.state["max_steps"], args.state["learning_rate"], args.state["weight_decay"]) == (12, 1e-3, 0.01)


@pytest.mark.parametrize("folder", ["trainer_adamw", "trainer_adafactor", "accelerate"])
def test_a_folder_is_one_call(folder: str) -> None:
    ours = load_trainer(DATA / folder)
    import safetensors.torch as package

    for name, x in package.load_file(DATA / folder / "model.safetensors").items():
        assert_same(ours.model[name], x)
    for name in ("optimizer", "scheduler"):
        (path,) = (DATA / folder).glob(f"{name}.*")
        assert_same(getattr(ours, name), torch.load(path, weights_only=True))
    assert ours.scaler is None
    if folder == "accelerate":  # it writes neither
        assert (ours.step, ours.trainer_state) == (None, None)
    else:
        assert ours.step == 6
        assert ours.trainer_state == json.loads((DATA / folder / "trainer_state.json").read_text())


def test_folders_that_are_not_whole(tmp_path: Path) -> None:
    with pytest.raises(PtFileError, match=r"has none of model\.safetensors"):
        load_trainer(tmp_path)
    save({"w": np.ones(1)}, tmp_path / "pytorch_model.bin")
    assert load_trainer(tmp_path).optimizer is None
    for name in ("optimizer.bin", "optimizer_1.bin"):
        save({}, tmp_path / name)
    with pytest.raises(PtFileError, match=r"has optimizer\.bin, optimizer_1\.bin"):
        load_trainer(tmp_path)
    (tmp_path / "optimizer_0").mkdir()
    (tmp_path / "optimizer_0" / ".metadata").touch()
    with pytest.raises(PtFileError, match="dcp_to_torch_save"):
        load_trainer(tmp_path)


def test_a_folder_of_several_models_or_of_a_damaged_state(tmp_path: Path) -> None:
    for name in ("model.safetensors", "model_1.safetensors"):  # accelerate's two models
        save_safetensors({"w": np.ones(1)}, tmp_path / name)
    with pytest.raises(PtFileError, match=r"has model\.safetensors and model_1\.safetensors of .*reads each"):
        load_trainer(tmp_path)
    (tmp_path / "model_1.safetensors").unlink()
    for text, message in (
        ("{", "it is not JSON"),
        ("[]", "no global_step"),
        ('{"global_step": "6"}', "no global_step"),
    ):
        (tmp_path / "trainer_state.json").write_text(text)
        with pytest.raises(PtFileError, match=rf"trainer_state\.json: .*{message}"):
            load_trainer(tmp_path)


def test_weights_in_parts_of_pickles(tmp_path: Path) -> None:
    save({"a": np.ones(1)}, tmp_path / "1.bin")
    save({"b": np.zeros(2)}, tmp_path / "2.bin")
    index = {"weight_map": {"a": "1.bin", "b": "2.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert {name: x.tolist() for name, x in load_trainer(tmp_path).model.items()} == {"a": [1], "b": [0, 0]}
    for changed, message in (
        ([], "no weight_map"),
        ({"weight_map": {"a": "1.bin", "b": "1.bin"}}, r"b is not in 1\.bin"),
    ):
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(changed))
        with pytest.raises(PtFileError, match=message):
            load_trainer(tmp_path)
    index["weight_map"]["a"] = "../1.bin"
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(PtFileError, match="not a file beside the index"):
        load_trainer(tmp_path)


def module(name: str) -> str:
    """The flax module that is the torch one."""
    return {"embedding": "Embed_0", "norm": "LayerNorm_0", "hidden": "Dense_0", "head": "Dense_1"}[name]


def in_flax(weights: dict[str, Any]) -> dict[str, Any]:
    """Ones in flax's names and layouts."""
    params: dict[str, Any] = {}
    for name, x in weights.items():
        layer, kind = name.split(".")
        leaf = {"embedding": "embedding", "norm": "scale"}.get(layer, "kernel") if kind == "weight" else "bias"
        params.setdefault(module(layer), {})[leaf] = jnp.ones(x.T.shape if leaf == "kernel" else x.shape)
    return params


def of_lightning(which: int) -> tuple[dict[str, Any], dict[str, Any]]:
    file = load(DATA / "lightning.ckpt")
    weights = {name.removeprefix("network."): x for name, x in file["state_dict"].items()}
    head = {name: x for name, x in weights.items() if name.startswith("head") == bool(which)}
    return head, file["optimizer_states"][which]


def of_file(name: str, weights: str) -> tuple[dict[str, Any], dict[str, Any]]:
    file = load(DATA / name)
    return dict(file[weights]), file["optimizer"]


def of_trainer(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    file = load_trainer(DATA / name)
    assert file.optimizer is not None
    order = load(DATA / "torch_ema.pt")["model"]  # the module's: a safetensors file has sorted them
    return {name: file.model[name] for name in order}, file.optimizer


MATRICES_FIRST, MATRICES_LAST = (lambda x: x.ndim == 1), (lambda x: x.ndim > 1)
CASES: dict[str, tuple[Callable[[], tuple[dict[str, Any], dict[str, Any]]], Any, Any, Any]] = {  # and the groups' order
    "trainer": (lambda: of_trainer("trainer_adamw"), optim.adamw, torch.optim.AdamW, MATRICES_FIRST),
    "accelerate": (lambda: of_trainer("accelerate"), optim.sgd, torch.optim.SGD, None),
    "lightning's first": (lambda: of_lightning(0), optim.adamw, torch.optim.AdamW, None),
    "lightning's second": (lambda: of_lightning(1), optim.sgd, torch.optim.SGD, None),
    "DCP": (lambda: of_file("dcp_converted.pt", "model"), optim.adamw, torch.optim.AdamW, None),
    "FSDP2": (lambda: of_file("fsdp_full.pt", "model"), optim.adamw, torch.optim.AdamW, None),
    "timm": (lambda: of_file("timm.pth.tar", "state_dict"), optim.adamw, torch.optim.AdamW, MATRICES_LAST),
}


def by_number(state_dict: dict[str, Any], groups: list[list[str]]) -> dict[str, Any]:
    """As an optimizer in one process has it: torch.distributed puts names for numbers."""
    number = {name: i for i, name in enumerate(name for inside in groups for name in inside)}
    state = {number.get(key, key): slots for key, slots in state_dict["state"].items()}
    return {
        "state": state,
        "param_groups": [
            group | {"params": [number[name] for name in inside]}
            for group, inside in zip(state_dict["param_groups"], groups, strict=True)
        ],
    }


@pytest.mark.parametrize("case", CASES)
def test_an_optimizer_goes_on_and_back(case: str, tmp_path: Path) -> None:
    make, factory, cls, order = CASES[case]
    weights, state_dict = make()
    names = sorted(weights, key=lambda name: order(weights[name])) if order else list(weights)
    groups = [[names[i] if isinstance(i, int) else i for i in group["params"]] for group in state_dict["param_groups"]]
    for group, inside in zip(state_dict["param_groups"], groups, strict=True):
        group["param_names"] = inside
    mapping = layout.infer(weights, in_flax(weights))
    params = layout.to_flax(mapping, weights, in_flax(weights))
    optimizer, state = load_optimizer(factory, state_dict, params, mapping)

    theirs = {name: torch.nn.Parameter(torch.from_numpy(x.copy())) for name, x in weights.items()}
    reference = cls([{"params": [theirs[name] for name in inside]} for inside in groups], lr=1.0)
    reference.load_state_dict(tensors(by_number(state_dict, groups)))
    rng = np.random.default_rng(0)
    for _ in range(3):
        grads = {name: rng.standard_normal(x.shape).astype(np.float32) for name, x in weights.items()}
        for name, x in theirs.items():
            x.grad = torch.from_numpy(grads[name])
        reference.step()
        params, state = optimizer.step(layout.to_flax(mapping, grads, params), state, params)
    for name, x in layout.to_torch(mapping, params).items():
        np.testing.assert_allclose(x, theirs[name].detach().numpy(), rtol=3e-6, atol=1e-7)

    save(optimizer_state_dict(optimizer, state, params, mapping), tmp_path / "back.pt")
    back, expected = torch.load(tmp_path / "back.pt", weights_only=True), reference.state_dict()
    assert [group["params"] for group in back["param_groups"]] == [
        group["params"] for group in expected["param_groups"]
    ]
    assert [group["param_names"] for group in back["param_groups"]] == groups
    for i, slots in expected["state"].items():
        for key, x in slots.items():
            np.testing.assert_allclose(back["state"][i][key], x, rtol=3e-6, atol=1e-7)
    reference.load_state_dict(back)
    reference.step()


def test_a_scheduler_of_lightning_goes_on() -> None:
    file = load(DATA / "lightning.ckpt")
    weights, state_dict = of_lightning(1)
    _, state = load_optimizer(optim.sgd, state_dict, in_flax(weights), layout.infer(weights, in_flax(weights)))
    scheduler = optim.lr_scheduler.exponential_lr(0.9)
    sched = load_scheduler(scheduler, file["lr_schedulers"][1], state, state_dict)
    rates = []
    for _ in range(3):
        sched, state = scheduler.step(sched, state)
        rates += scheduler.get_last_lr(sched)
    start = file["lr_schedulers"][1]["_last_lr"][0]
    assert rates == [start * 0.9, start * 0.9 * 0.9, start * 0.9 * 0.9 * 0.9]
