"""The examples run and learn; the GPT goes on from a torch run with torch's own losses."""

import math
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "examples"
# The last losses as a share of the first, at most.
LEARNS = {
    "fine_tune": 0.5,
    "gpt": 0.9,
    "lbfgs_curve_fit": 0.1,
    "mnist_adadelta": 0.5,
    "muon_adamw": 0.3,
    "sparse_embedding": 0.3,
    "tutorial": 0.9,
    "vision_recipe": 0.7,
}
ELSEWHERE = {"zero1"}  # tests/test_zero1.py


def run(name: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> dict[str, Any]:
    """The script as `python examples/name.py arguments` runs it; its variables at the end."""
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    return runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")


def test_every_script_is_run_and_short():
    files = {file.stem: len(file.read_text().splitlines()) for file in FOLDER.glob("*.py")}
    assert set(files) == set(LEARNS) | ELSEWHERE
    assert max(files.values()) < 80, files
    assert files["tutorial"] <= 70


@pytest.mark.parametrize("name", LEARNS)
def test_what_it_trains_learns(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = run(name, monkeypatch)
    for losses in (seen["losses"], seen.get("nnx_losses", seen["losses"])):
        assert all(map(math.isfinite, losses))
        assert losses[-1] < losses[0]
        few = max(1, len(losses) // 10)
        assert sum(losses[-few:]) < LEARNS[name] * sum(losses[:few]), losses


def torch_gpt(width: int, heads: int, layers: int, context: int) -> Any:
    """nanoGPT's model, with its names."""
    import torch
    from torch import nn
    from torch.nn import functional

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.attn = nn.ModuleDict({"c_attn": nn.Linear(width, 3 * width), "c_proj": nn.Linear(width, width)})
            self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

        def forward(self, x: Any) -> Any:
            parts = self.attn["c_attn"](self.ln_1(x)).chunk(3, -1)
            q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in parts)
            y = functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
            x = x + self.attn["c_proj"](y)
            return x + self.mlp["c_proj"](functional.gelu(self.mlp["c_fc"](self.ln_2(x)), approximate="tanh"))

    class GPT(nn.Module):
        def __init__(self):
            super().__init__()
            wte, wpe = nn.Embedding(128, width), nn.Embedding(context, width)
            blocks = nn.ModuleList([Block() for _ in range(layers)])
            self.transformer = nn.ModuleDict({"wte": wte, "wpe": wpe, "h": blocks, "ln_f": nn.LayerNorm(width)})
            self.lm_head = nn.Linear(width, 128, bias=False)
            nn.init.normal_(self.lm_head.weight, std=0.02)
            wte.weight = self.lm_head.weight

        def forward(self, tokens: Any) -> Any:
            x = self.transformer["wte"](tokens) + self.transformer["wpe"](torch.arange(tokens.shape[1]))
            for block in self.transformer["h"]:  # pyright: ignore[reportGeneralTypeIssues]
                x = block(x)
            return self.lm_head(self.transformer["ln_f"](x))

    torch.manual_seed(0)
    return GPT()


def test_the_gpt_goes_on_from_a_torch_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps in torch, then thirty more in both: weights, moments, groups and the warm-up have come over."""
    torch = pytest.importorskip("torch")
    import numpy as np

    context, steps, text = 32, 30, (FOLDER / "gpt.py").read_bytes()
    tokens = np.frombuffer(text, np.uint8).astype(int)
    model = torch_gpt(width=32, heads=2, layers=2, context=context)
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    rest = {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0}
    optimizer = torch.optim.AdamW([{"params": matrices}, rest], lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1)
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=5)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=3e-4)
    scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm_up, cosine], [5])

    def train_step(seed: int) -> float:
        starts = np.random.default_rng(seed).integers(len(tokens) - context - 1, size=(2, 8, 1))
        total = 0.0
        for batch in torch.from_numpy(tokens[starts + np.arange(context + 1)]):
            logits = model(batch[:, :-1])
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten()) / 2
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        return total

    for step in range(3):
        train_step(1000 + step)
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    torch.save({name: part.state_dict() for name, part in parts.items()}, tmp_path / "run.pt")
    seen = run("gpt", monkeypatch, str(tmp_path / "run.pt"))
    np.testing.assert_allclose(seen["losses"], [train_step(step) for step in range(steps)], 1e-3)
    assert seen["scheduler"].get_last_lr(seen["sched"]) == scheduler.get_last_lr()
