"""Writes foreign/: checkpoints of one small network as the libraries around torch write them.

    pip install torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 lightning==2.6.6 timm==1.0.31 torch_ema==0.3
    python make_foreign_checkpoints.py

Each has one network after some steps of an optimizer. `test_foreign_checkpoints.py` and `test_hf_trainer.py` read them,
go on from them in JAX, and back in torch.
"""
# pyright: basic, reportMissingImports=false, reportOptionalMemberAccess=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false, reportPrivateImportUsage=false

import argparse
import importlib.util
import os
import shutil
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import accelerate
import lightning
import torch
import torch.distributed.checkpoint as dcp
import torch_ema
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_optimizer_state_dict
from torch.distributed.fsdp import fully_shard
from transformers import Trainer, TrainingArguments

HERE = Path(__file__).parent / "foreign"


class Network(torch.nn.Module):
    """An embedding, a norm and two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(5, 4)
        self.norm = torch.nn.LayerNorm(4)
        self.hidden = torch.nn.Linear(4, 3)
        self.head = torch.nn.Linear(3, 2)

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.head(torch.tanh(self.hidden(self.norm(self.embedding(tokens).mean(1)))))
        return {"loss": torch.nn.functional.cross_entropy(x, labels), "logits": x}


def data() -> list[dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    return [{"tokens": torch.randint(5, (3,)), "labels": torch.randint(2, ())} for _ in range(24)]


def trained(optimizer: torch.optim.Optimizer, network: Network, steps: int = 3) -> None:
    for batch in torch.utils.data.DataLoader(data()[: 4 * steps], 4):
        optimizer.zero_grad()
        network(**batch)["loss"].backward()
        optimizer.step()


def trainer(name: str, *files: str, **options: Any) -> None:
    """transformers: the folder of a run that stands at step 6 of 12."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=12,
            per_device_train_batch_size=4,
            save_steps=6,
            learning_rate=1e-3,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            **options,
        )
        Trainer(Network(), arguments, train_dataset=data()).train()
        copy(Path(folder) / "checkpoint-6", HERE / name, *files)


def with_accelerate() -> None:
    """accelerate: what `save_state` writes."""
    torch.manual_seed(0)
    network = Network()
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    loader = torch.utils.data.DataLoader(data(), 4, shuffle=True)
    accelerator = accelerate.Accelerator(cpu=True)
    network, optimizer, scheduler, loader = accelerator.prepare(network, optimizer, scheduler, loader)
    for batch in loader:
        optimizer.zero_grad()
        accelerator.backward(network(**batch)["loss"])
        optimizer.step()
        scheduler.step()
    with tempfile.TemporaryDirectory() as folder:
        accelerator.save_state(folder)
        copy(Path(folder), HERE / "accelerate")


class Module(lightning.LightningModule):
    """The network with two optimizers, two schedulers and hyper-parameters of several types."""

    def __init__(self, lr: float, paths: argparse.Namespace, shape: torch.Size) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.network = Network()

    def training_step(self, batch: dict[str, torch.Tensor], _: int) -> None:
        loss = self.network(**batch)["loss"]
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
        for scheduler in self.lr_schedulers():
            scheduler.step()
        self.log("loss", loss)

    def configure_optimizers(self) -> Any:
        head = list(self.network.head.parameters())
        body = [p for name, p in self.network.named_parameters() if not name.startswith("head")]
        first = torch.optim.AdamW(body, self.hparams["lr"])
        second = torch.optim.SGD(head, 0.1, momentum=0.9, nesterov=True)
        rates = (
            torch.optim.lr_scheduler.OneCycleLR(first, 0.01, 20),
            torch.optim.lr_scheduler.ExponentialLR(second, 0.9),
        )
        return [first, second], list(rates)


def with_lightning() -> None:
    """Lightning: a `.ckpt` with optimizers, schedulers, callbacks, loops and hyper-parameters."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        model = Module(0.001, argparse.Namespace(out=Path("runs/1"), seeds=range(3)), torch.Size([2, 3]))
        saver = ModelCheckpoint(folder, filename="x", monitor="loss")
        runner = lightning.Trainer(
            max_epochs=1,
            accelerator="cpu",
            callbacks=[saver, EarlyStopping("loss")],
            logger=False,
            enable_progress_bar=False,
            default_root_dir=folder,
        )
        runner.fit(model, torch.utils.data.DataLoader(data(), 4))
        HERE.mkdir(exist_ok=True)
        shutil.copyfile(f"{folder}/x.ckpt", HERE / "lightning.ckpt")


def without_torchvision() -> None:
    """timm needs it for its models and data, which are not used here, and PyPI has none for torch's CPU build."""
    path = importlib.util.find_spec("timm").submodule_search_locations
    for name in ("timm", "timm.models", "torchvision", "torchvision.ops", "torchvision.ops.misc"):
        module = sys.modules[name] = types.ModuleType(name)
        module.__path__ = path if name == "timm" else []
    sys.modules["timm.models"].group_parameters = None
    sys.modules["torchvision.ops.misc"].FrozenBatchNorm2d = type("FrozenBatchNorm2d", (torch.nn.Module,), {})


def with_timm() -> None:
    """timm: its saver's file, with the arguments of the script."""
    import timm.optim
    import timm.utils

    torch.manual_seed(0)
    network, args = Network(), argparse.Namespace(model="network", lr=0.01, betas=[0.9, 0.99], out=None)
    optimizer = timm.optim.create_optimizer_v2(network, "adamw", 0.01, weight_decay=0.05)
    trained(optimizer, network)
    average = timm.utils.ModelEmaV3(network)
    with tempfile.TemporaryDirectory() as folder:
        saver = timm.utils.CheckpointSaver(network, optimizer, args, average, checkpoint_dir=folder)
        saver.save_checkpoint(2, 0.5)
        shutil.copyfile(f"{folder}/last.pth.tar", HERE / "timm.pth.tar")


def with_torch_ema() -> None:
    """torch_ema: the state dict of an average."""
    torch.manual_seed(0)
    network = Network()
    average = torch_ema.ExponentialMovingAverage(network.parameters(), decay=0.9)
    trained(torch.optim.Adam(network.parameters()), network)
    average.update()
    average.store()
    torch.save({"model": network.state_dict(), "ema": average.state_dict()}, HERE / "torch_ema.pt")


def state(network: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return {
        "model": get_model_state_dict(network, options=options),
        "optimizer": get_optimizer_state_dict(network, optimizer, options=options),
    }


def with_dcp() -> None:
    """torch.distributed.checkpoint: a folder, and the file that torch makes of it."""
    torch.manual_seed(0)
    network = Network()
    optimizer = torch.optim.AdamW(network.parameters())
    trained(optimizer, network)
    with tempfile.TemporaryDirectory() as folder:
        dcp.save(state(network, optimizer), checkpoint_id=folder, no_dist=True)
        dcp_to_torch_save(folder, HERE / "dcp_converted.pt")


def fsdp(rank: int) -> None:
    """FSDP2: the whole state dict of two processes, and the part of one."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    torch.manual_seed(0)
    network = Network()
    fully_shard(network, mesh=torch.distributed.init_device_mesh("cpu", (2,)))
    optimizer = torch.optim.AdamW(network.parameters())
    trained(optimizer, network)
    whole = state(network, optimizer)
    if rank == 0:
        torch.save(whole, HERE / "fsdp_full.pt")
        torch.save({"model": network.state_dict(), "optimizer": optimizer.state_dict()}, HERE / "fsdp_part.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def copy(source: Path, target: Path, *names: str) -> None:
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for path in source.iterdir():
        if not names or path.name in names:
            shutil.copyfile(path, target / path.name)


def main() -> None:
    HERE.mkdir(exist_ok=True)
    both = ("model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json")
    trainer("trainer_adamw", *both, "training_args.bin", "rng_state.pth", weight_decay=0.01)
    trainer("trainer_adafactor", *both, optim="adafactor")  # transformers' own, which is not torch's
    with_accelerate()
    with_lightning()
    without_torchvision()
    with_timm()
    with_torch_ema()
    with_dcp()
    torch.multiprocessing.spawn(fsdp, nprocs=2)


if __name__ == "__main__":
    main()
