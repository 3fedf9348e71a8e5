"""Damaged and hostile files: `load` and `load_safetensors` must return, or raise PtFileError, within bounds.

`python -m benchmarks.fuzz_pt_file --inputs 200000` prints how many inputs ended how, and the most memory taken. They
are files of torch's zip format, of that from before 1.6 and of safetensors, mapped and read, with placeholders kept and
refused. Input N of a seed is made in the same way in every run: `--first N --inputs 1` repeats it. An input that kills
the process is left in the file whose name is printed first; the first of each kind of fault is kept.

Recorded, inputs 0 to 199,999 of seed 0 in pieces of 10,000, files of torch 2.13: 178,918 PtFileError, 21,082 loaded, no
fault; 2.63 MiB the most that one load took of those traced.
"""

import argparse
import collections
import os
import resource
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.damaged_files import make_input, seeds
from jaxopt_port.torch_interop import PtFileError, Unknown, load, load_safetensors

SECONDS = 5.0  # of the processor; more is a hang: the files are of a few kilobytes
TRACED = 9  # of so many inputs one has its memory traced, which makes it 3 times slower
MEMORY = 1 << 20, 400  # bytes that any load may take, and for each byte of the file


def outcome(read: Callable[[], Any], size: int, trace: bool) -> tuple[str, int]:
    """What became of a load: `loaded`, `PtFileError` or a fault; and the most memory that it took, if traced."""
    if trace:
        tracemalloc.start()
    start = time.process_time()
    try:
        _touch(read())
        result = "loaded"
    except PtFileError:
        result = "PtFileError"
    except Exception as error:  # this is what is looked for
        result = f"FAULT: {type(error).__name__}: {error}"
    memory = tracemalloc.get_traced_memory()[1]  # 0 where nothing is traced
    tracemalloc.stop()
    if time.process_time() - start > SECONDS:
        result = "FAULT: hang"
    elif memory > MEMORY[0] + MEMORY[1] * size:
        result = "FAULT: memory"
    return result, memory


def _peak_resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _touch(value: Any) -> None:
    """Read the first and the last element of every array, which would end the process if they were not there."""
    if isinstance(value, np.ndarray) and value.size:
        list(map(value.item, (0, value.size - 1)))
    elif isinstance(value, dict):
        _touch(list(value.values()))
    elif isinstance(value, Unknown):
        if len(repr(value)) > 20_000:
            raise OverflowError("a long text of a placeholder")
        _touch([each for each in (*(value.args or ()), *value.items) if not isinstance(each, Unknown)])
    elif isinstance(value, list | tuple):
        for each in value[:1000]:
            _touch(each)


def fuzz(inputs: int, first: int = 0, seed: int = 0, say: bool = False) -> collections.Counter[tuple[str, str]]:
    """Counts of (mutation, outcome)."""
    files = seeds()
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    most = 0
    resident = _peak_resident()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "input.pt")
        if say:
            print(
                f"{len(files)} real files of {[len(file) for file in files]} bytes; the input is in {path}", flush=True
            )
        for number in range(first, first + inputs):
            kind, mutation, data = make_input(files, seed, number)
            path.write_bytes(data)
            mmap = number % 2 == 1 and kind != "old"
            keep = "keep" if number % 4 > 1 else "error"
            read = partial(load_safetensors, path, mmap=mmap)
            if kind != "safetensors":
                read = partial(load, path, mmap=mmap, unknown=keep)
            result, memory = outcome(read, len(data), trace=number % TRACED == 0)
            most = max(most, memory)
            if say and result.startswith("FAULT") and not counts[mutation, result]:
                kept = Path(tempfile.gettempdir(), f"fault-{number}.pt")
                kept.write_bytes(data)
                print(f"input {number}, {mutation}, {len(data)} bytes, {kept}: {result}", flush=True)
            counts[mutation, result] += 1
    if say:
        grown = _peak_resident() - resident
        print(
            f"most memory of one load in {TRACED}: {most / 2**20:.2f} MiB; the process grew by {grown / 2**20:.1f} MiB"
        )
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=200_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    counts = fuzz(args.inputs, args.first, args.seed, say=True)
    totals: collections.Counter[str] = collections.Counter()
    for (mutation, result), count in sorted(counts.items()):
        print(f"{mutation:26} {result:60.60} {count:8,}")
        totals[result.split(":")[0]] += count
    print(
        f"{os.cpu_count()} CPUs; in all {sum(totals.values()):,}:", ", ".join(f"{k} {n:,}" for k, n in totals.items())
    )
    if totals["FAULT"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
