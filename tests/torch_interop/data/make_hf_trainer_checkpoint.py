"""Writes hf_trainer_*.pt: what Hugging Face's Trainer saves by default, of AdamW with two groups and a LambdaLR.

    pip install torch==2.13.0 transformers==5.23.0 accelerate==1.15.0
    python make_hf_trainer_checkpoint.py

The run is stopped in the middle: 6 steps of 12.
"""

import shutil
import tempfile
from pathlib import Path

import torch
from transformers import Trainer, TrainingArguments  # pyright: ignore[reportMissingImports]


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


def main() -> None:
    torch.manual_seed(0)
    data = [{"tokens": torch.randint(5, (3,)), "labels": torch.randint(2, ())} for _ in range(24)]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=12,
            per_device_train_batch_size=4,
            save_steps=6,
            weight_decay=0.01,
            learning_rate=1e-3,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
        )
        Trainer(Network(), arguments, train_dataset=data).train()
        for name in ("optimizer", "scheduler"):
            here = Path(__file__).parent / f"hf_trainer_{name}.pt"
            shutil.copyfile(Path(folder) / "checkpoint-6" / f"{name}.pt", here)


if __name__ == "__main__":
    main()
