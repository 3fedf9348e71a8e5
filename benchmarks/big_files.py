"""How long a large file takes to load and to save, beside torch, and the most memory it needs.

`python -m benchmarks.big_files --gigabytes 2.1 --folder /tmp` makes a file there of 40 float32 matrices with torch, and
removes it. Each figure is the best of `--repeats` runs, each in a process of its own, the two taking turns, after the
file has been read once: what is compared is the program, not the disk. The time that the
processor was busy is beside it, for machines with other work. Memory is the process's peak less what it had before, in
parts of the file's size. `load` has computed the file's checksums, which torch does not look at.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

PREPARE = """
import json, resource, sys, time
path, other = sys.argv[1:]
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
def measure(function):
    before, start, cpu = peak(), time.perf_counter(), time.process_time()
    result = function()
    print(json.dumps([time.perf_counter() - start, time.process_time() - cpu, peak() - before]))
    return result
"""
TORCH = PREPARE + "import torch\nload, save = lambda p: torch.load(p, weights_only=True), torch.save\n"
OURS = PREPARE + "from jaxopt_port.torch_interop import load, load_safetensors, save, save_safetensors\n"
PACKAGE = PREPARE + "from safetensors.numpy import load_file, save_file\n"
JOBS = {  # what to do, by whom
    "load": {"torch": TORCH + "measure(lambda: load(path))", "ours": OURS + "measure(lambda: load(path))"},
    "load, mapped": {
        "torch": TORCH + "measure(lambda: torch.load(path, weights_only=True, mmap=True))",
        "ours": OURS + "measure(lambda: load(path, mmap=True))",
    },
    "save": {
        "torch": TORCH + "x = load(path)\nmeasure(lambda: save(x, other))",
        "ours": OURS + "x = load(path)\nmeasure(lambda: save(x, other))",
    },
    "load from before 1.6": {
        "torch": TORCH + "measure(lambda: load(path))",
        "ours": OURS + "measure(lambda: load(path))",
    },
    "load safetensors": {
        "safetensors": PACKAGE + "measure(lambda: load_file(path))",
        "ours": OURS + "measure(lambda: load_safetensors(path))",
    },
    "save safetensors": {
        "safetensors": PACKAGE + "x = load_file(path)\nmeasure(lambda: save_file(x, other))",
        "ours": OURS + "x = load_safetensors(path)\nmeasure(lambda: save_safetensors(x, other))",
    },
}
MAKE = """
import sys, torch, safetensors.torch
path, kind, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
x = {str(i): torch.randn(size // 160) for i in range(40)}
if kind == "safetensors":
    safetensors.torch.save_file(x, path)
else:
    torch.save(x, path, _use_new_zipfile_serialization=kind == "zip")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.1)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path, other = Path(folder, "a"), Path(folder, "b")
        made = None
        for job, programs in JOBS.items():
            kind = "safetensors" if "safetensors" in job else "old" if "1.6" in job else "zip"
            if kind != made:
                _run(MAKE, path, kind, int(args.gigabytes * 1e9))
                made = kind
            runs: dict[str, list[list[float]]] = {name: [] for name in programs}
            for _ in range(args.repeats):
                for name, program in programs.items():
                    runs[name].append(json.loads(_run(program, path, other)))
                    other.unlink(missing_ok=True)
            best = {name: [min(column) for column in zip(*each, strict=True)] for name, each in runs.items()}
            wall, cpu, _ = best[next(iter(best))]
            for name, (seconds, busy, _) in best.items():
                memory = max(each[2] for each in runs[name]) / path.stat().st_size
                times = f"{seconds:6.2f} s {seconds / wall:5.2f} x, CPU {busy:6.2f} s {busy / cpu:5.2f} x"
                print(f"{job:21} {name:12} {times}, memory {memory:5.2f} x", flush=True)


def _run(program: str, *args: object) -> str:
    command = [sys.executable, "-c", program, *map(str, args)]
    return subprocess.run(
        command, check=True, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": "."}
    ).stdout


if __name__ == "__main__":
    main()
