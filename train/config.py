"""What a run is: one frozen dataclass, which is the command line too."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

Suppressed = Annotated[bool, tyro.conf.Suppress]


@dataclasses.dataclass(frozen=True)
class Config:
    """Train the network of PyTorch's CIFAR-10 tutorial with torch.optim's optimizers, in JAX."""

    recipe: Annotated[str, tyro.conf.Suppress] = "tutorial"
    """The run that the flags change."""
    dataset: str = "digits"
    """scikit-learn's bundled digits; cifar10, cifar100 or svhn_cropped; or any set of 32x32 pictures that TFDS has
    prepared in --data-dir."""
    data_dir: Path | None = None
    """The TFDS directory that the dataset is read from, or prepared in if it is not there; by default in the user's
    cache directory."""
    archive: Path | None = None
    """cifar10 or cifar100 as a file at hand, the binary or the python version, in place of the download."""
    split: str = "test"
    """The split to train on, such as train or test."""
    limit: int | None = None
    """Train on the first so many examples of the split."""
    batch_size: int = 1
    """Examples a step; the last step of an epoch takes what is left."""
    epochs: int = 20
    """Passes over the examples. A run whose loss is no longer finite ends before."""
    steps: int | None = None
    """Stop after so many steps."""
    augment: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Crop and flip the pictures at random."""
    optimizer: str = "sgd"
    """A torch.optim optimizer, in lower case, or muon_adamw. Another than the recipe's starts from torch's default
    options."""
    lr: float | None = None
    """The learning rate, by default the recipe's, or torch's for the optimizer."""
    option: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="KEY=VALUE")] = ()
    """Any other option of the optimizer, beside the recipe's: --option momentum=0.9 --option betas=0.9,0.99"""
    scheduler: str | None = None
    """A torch.optim.lr_scheduler, in snake case, such as one_cycle_lr; None for none."""
    scheduler_option: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="KEY=VALUE")] = ()
    """Its options: --scheduler-option max_lr=0.1. T_max and total_steps are by default the run's length."""
    scheduler_interval: Literal["step", "epoch"] = "epoch"
    """How often it moves: after every step of the optimizer, or after every epoch."""
    clip_grad_norm: float | None = None
    """Scale the gradients of a step down to this norm."""
    accumulate: int = 1
    """Add up the gradients of so many batches for a step of the optimizer, as backward() does."""
    ema: float | None = None
    """Evaluate an exponential moving average of the weights, with this decay, on the test split too."""
    precision: Literal["float32", "bf16"] = "float32"
    """What the network computes in; bf16 is bfloat16. Parameters, gradients' sums, the loss and the optimizer are
    float32."""
    init: Literal["torch", "jax"] = "jax"
    """Draw weights and the order of examples as a torch script with torch.manual_seed(SEED) does, or as JAX does."""
    seed: int = 0
    """Seeds the weights, the order of examples and --augment."""
    shard_params: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """With several devices: each keeps a part of the parameters and of the optimizer's state, and a step gathers
    them."""
    shard_optimizer: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """With several devices: each keeps and steps a part of the optimizer's state (ZeRO-1); all have the parameters."""
    coordinator: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT")] = None
    """Train in several processes: where the first of them listens; or auto, where the cluster (SLURM, GKE, Cloud TPU,
    Open MPI) says it all."""
    num_processes: int | None = None
    """How many processes there are, with a --coordinator HOST:PORT."""
    process_id: int | None = None
    """Which of them this is, from 0. The first alone writes."""
    resume: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    """Go on with a run from its folder: with all its settings, at the step of its last checkpoint."""
    checkpoint_every: int | None = None
    """Write a checkpoint after every so many steps too. There is one after each epoch, and where a run is stopped."""
    checkpoint_minutes: float | None = 5.0
    """Write a checkpoint after so many minutes without one too; None for never."""
    resume_torch: Path | None = None
    """Start from a PyTorch checkpoint, a file with the state dicts `model` and `optimizer`, and `scheduler` if any,
    with its learning rate and options, but for those that flags give."""
    start_epoch: int | None = None
    """The first epoch of a run from --resume-torch, where the file does not say it; it decides the order."""
    export_torch: Path | None = None
    """Write a PyTorch checkpoint, for torch.load, after every epoch."""
    run_dir: Path | None = None
    """Where the run is recorded: a new or empty directory, by default runs/TIME-RECIPE."""
    tensorboard: bool = False
    """Write the run for TensorBoard too (tensorboard --logdir runs). Needs the package tensorboardX."""
    quiet: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show no progress between the lines of the epochs."""

    # What a recipe decides and no flag changes.
    shuffle: Suppressed = False
    evaluate: Suppressed = False

    @property
    def described(self) -> list[str]:
        """What the run does, in words: its optimizer, its batches, its examples, and what is around the optimizer."""
        options = [*([] if self.lr is None else [f"lr={self.lr:g}"]), *self.option]
        return [
            f"{self.recipe} recipe: {self.optimizer}({', '.join(options)})",
            f"batch size {self.batch_size}",
            f"{self.dataset} {self.split}"
            + ("" if self.limit is None else f", first {self.limit:,}")
            + (", cropped and flipped at random" if self.augment else ""),
            *([] if self.scheduler is None else [f"{self.scheduler}({', '.join(self.scheduler_option)})"]),
            *([] if self.clip_grad_norm is None else [f"gradient norm at most {self.clip_grad_norm:g}"]),
            *([] if self.accumulate == 1 else [f"a step every {self.accumulate} batches"]),
            *([] if self.precision == "float32" else [f"computed in {self.precision}"]),
            *([] if self.ema is None else [f"weights averaged with decay {self.ema:g}"]),
        ]

    @property
    def evaluates(self) -> bool:
        """Whether the run evaluates on the test split after every epoch."""
        return self.evaluate or self.ema is not None

    def to_json(self) -> dict[str, Any]:
        """The settings as JSON has them."""
        return {
            name: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }

    @staticmethod
    def from_json(settings: dict[str, Any]) -> "Config":
        """The configuration that `to_json` gave these settings of."""
        values: dict[str, Any] = dict(settings)
        values |= {name: Path(settings[name]) for name in PATHS if settings.get(name) is not None}
        values |= {name: tuple(settings[name]) for name in LISTS if name in settings}
        return Config(**values)


PATHS = ("data_dir", "archive", "resume", "resume_torch", "export_torch", "run_dir")
LISTS = ("option", "scheduler_option")
AUTO = "auto"  # a --coordinator that the cluster names


def flag(name: str, value: Any = None) -> str:
    """A setting as one writes it: `--batch-size 4`."""
    written = "--" + name.replace("_", "-")
    return written if value is None else f"{written} {value}"
