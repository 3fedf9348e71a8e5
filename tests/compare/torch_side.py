"""Small training runs in PyTorch, recorded: a GPT, a ResNet, an LSTM, and Muon with AdamW."""

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from jaxopt_port.compare import record as recorder

record = recorder.record
Batch = dict[str, torch.Tensor]
VOCABULARY, CONTEXT, WIDTH, HEADS, BLOCKS = 29, 12, 32, 4, 2
WARM_UP, STEPS = 10, 200


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln1, self.qkv, self.proj = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.ln2, self.up, self.act = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4 * WIDTH), nn.GELU()
        self.down = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        q, k, v = self.qkv(self.ln1(x)).view(batch, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(attended.transpose(1, 2).reshape(batch, length, -1))
        return x + self.down(self.act(self.up(self.ln2(x))))


class GPT(nn.Module):
    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.ln_f, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Embedding | nn.Linear):
                nn.init.normal_(module.weight, std=0.05)
        if tied:
            self.head.weight = self.wte.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.wte(x) + self.wpe(torch.arange(x.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln_f(x))


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(2)
        self.conv2, self.bn2 = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv3, self.bn3 = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.down = nn.Conv2d(8, 16, 1, stride=2, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.fc1, self.fc2 = nn.Linear(16 * 4 * 4, 16), nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.relu(self.bn1(self.conv1(x))))
        y = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(x)))))
        x = self.relu(y + self.down(x))
        return self.fc2(self.relu(self.fc1(x.flatten(1))))


class LSTM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm = nn.Embedding(VOCABULARY, 16), nn.LSTM(16, 24, batch_first=True)
        self.out = nn.Linear(24, VOCABULARY)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.lstm(self.embed(x))[0])


class MLP(nn.Module):
    """For Muon: square and other matrices, norms, biases."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.norm, self.fc2 = nn.Linear(20, 32), nn.LayerNorm(32), nn.Linear(32, 32)
        self.fc3 = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.gelu(self.norm(self.fc1(x)))
        return self.fc3(torch.tanh(self.fc2(x)))


def warm_up_cosine(step: int) -> float:
    """The rate's factor."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - WARM_UP) / (STEPS - WARM_UP)))


def tokens(generator: torch.Generator, batch: int = 4) -> Batch:
    """A text that can be learned: each token follows from the one before, mostly."""
    x = torch.randint(0, VOCABULARY, (batch, 1), generator=generator)
    for _ in range(CONTEXT):
        noise = torch.randint(0, 3, (batch, 1), generator=generator)
        x = torch.cat([x, (x[:, -1:] * 3 + noise) % VOCABULARY], 1)
    return {"x": x[:, :-1], "y": x[:, 1:]}


def pictures(generator: torch.Generator, batch: int = 16) -> Batch:
    y = torch.randint(0, 10, (batch,), generator=generator)
    x = torch.randn(batch, 3, 16, 16, generator=generator) + (y[:, None, None, None] - 4.5) / 5
    return {"x": x, "y": y}


def vectors(generator: torch.Generator, batch: int = 32) -> Batch:
    x = torch.randn(batch, 20, generator=generator)
    return {"x": x, "y": (x[:, :10] + 0.5 * x[:, 10:]).argmax(1)}


def language_loss(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.flatten(0, -2), y.flatten())


def adamw_groups(model: nn.Module, lr: float = 3e-3) -> torch.optim.Optimizer:
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95))


def record_run(
    name: str, path: Path, seed: int, steps: int, full: Iterable[int] = (1,), redo: bool = True, **change: Any
) -> None:
    """Record one of the runs.

    Args:
      name: `gpt`, `resnet`, `lstm` or `muon`.
      path: of the trace.
      seed: of weights and batches.
      steps: of the optimizer.
      full: those that are whole.
      redo: whether torch does the first one again.
      **change: attributes of the model that are set before the run.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    model: nn.Module = {"gpt": GPT, "resnet": ResNet, "lstm": LSTM, "muon": MLP}[name]()
    for key, value in change.items():
        setattr(model, key, value)
    draw: Callable[..., Batch] = {"resnet": pictures, "muon": vectors}.get(name, tokens)
    optimizers, schedulers, accumulate, clip = made(name, model)

    def closure(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return language_loss(model(x), y) / accumulate

    with record(model, optimizers, path, full=full) as r:
        if redo:
            r.redo(closure, step=1)
        for _ in range(steps):
            for optimizer in optimizers:
                optimizer.zero_grad()
            for _ in range(accumulate):
                batch = draw(generator)
                r.batch(**batch)
                loss = closure(**batch)
                r.loss(loss)
                loss.backward()
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            for optimizer in optimizers:
                optimizer.step()
            for scheduler in schedulers:
                scheduler.step()


def made(name: str, model: nn.Module) -> tuple[list[Any], list[Any], int, float]:
    """Optimizers, schedulers, batches a step, and the norm that gradients are clipped to."""
    if name == "gpt":
        optimizer = adamw_groups(model)
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, warm_up_cosine)], 2, 1.0
    if name == "resnet":
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
        return [optimizer], [torch.optim.lr_scheduler.MultiStepLR(optimizer, [8, 120], gamma=0.5)], 1, 0.0
    if name == "lstm":
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=1e-4)
        return [optimizer], [], 1, 0.1
    matrices = [p for p in model.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if p.ndim != 2]
    muon = torch.optim.Muon(matrices, lr=2e-2, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(rest, lr=3e-3)], [], 1, 0.0


def record_classifier(
    model: Any, optimizers: list[Any], path: Path, steps: int, clip: float = 0.0, **options: Any
) -> None:
    """Some steps of a model of five numbers and three classes; `clip` is a value, `options` are the recorder's."""
    with record(model, optimizers, path, **options) as r:
        for _ in range(steps):
            x, y = torch.randn(12, 5), torch.randint(0, 3, (12,))
            r.batch(x=x, y=y)

            def closure(x: Any = x, y: Any = y) -> Any:
                model.zero_grad()
                loss = torch.nn.functional.cross_entropy(model(x), y)
                r.loss(loss)
                loss.backward()
                if clip:
                    torch.nn.utils.clip_grad_value_(model.parameters(), clip)
                return loss

            if isinstance(optimizers[0], torch.optim.LBFGS):
                optimizers[0].step(closure)
                continue
            closure()
            for optimizer in optimizers:
                optimizer.step()
