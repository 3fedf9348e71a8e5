"""The compilation cache: used by the next run, and never trusted where it is damaged."""

import json
import os
import subprocess
import sys
from pathlib import Path


def run(folder: Path, cache: Path) -> tuple[list[float], str]:
    """The losses of a short run, and what it said on standard error."""
    command = [sys.executable, "-m", "train", "--limit", "5", "--epochs", "1", "--quiet", "--run-dir", str(folder)]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    done = subprocess.run(
        command, env={**kept, "XDG_CACHE_HOME": str(cache)}, capture_output=True, text=True, check=True
    )
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines], done.stderr


def test_a_run_uses_what_another_has_compiled_unless_it_is_damaged(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first, _ = run(tmp_path / "first", cache)
    (step,) = (cache / "jaxopt_port" / "compiled").glob("*/jit_step-*-cache")
    whole = step.read_bytes()
    second, said = run(tmp_path / "second", cache)
    assert second == first
    assert step.read_bytes() == whole
    assert "compilation cache" not in said

    broken = bytearray(whole)
    broken[len(broken) // 2] ^= 1
    step.write_bytes(broken)
    third, said = run(tmp_path / "third", cache)
    assert third == first
    assert "compilation cache" in said
