"""0 differing bits from torch, in parameters and state, for every configuration of torch's own tests.

The comparison runs in processes of their own (see compare.py), one for each precision, for the optimizers selected.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import jaxopt_port
from tests.conftest import report
from tests.exact.compare import CLOSURES, LIMITS
from tests.exact.conftest import selected_names

pytest.importorskip("torch")
NAMES = [name for name in jaxopt_port.optimizers if name not in CLOSURES]
REAL = ("adafactor", "muon", "sparse_adam")  # torch's take no complex parameters
CASES = [(n, d) for n in NAMES for d in ("float32", "float64", "complex64") if d != "complex64" or n not in REAL]

Record = dict[str, Any]


@pytest.fixture(scope="module")
def records(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """What compare.py found for the optimizers of the selected tests."""
    selected = selected_names(request)
    folder = tmp_path_factory.mktemp("exact")
    shares = [("float32", "complex64"), ("float64", "bfloat16")]
    runs = [_start([n for n in NAMES if n in selected], dtypes, folder / dtypes[0]) for dtypes in shares]
    printed = [run.communicate()[0] for run in runs]
    if not all((folder / dtypes[0]).exists() for dtypes in shares):
        pytest.fail("the comparison broke off:\n" + "\n".join(printed))
    found = [json.loads(line) for dtypes in shares for line in (folder / dtypes[0]).read_text().splitlines()]
    request.config.stash.setdefault(report, []).extend(_summary(found))
    return found


def _start(names: list[str], dtypes: tuple[str, ...], path: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.exact.compare", "--optimizer", *names, "--dtype", *dtypes]
    root = Path(__file__).parents[2]
    command += ["--json", str(path)]
    return subprocess.Popen(command, cwd=root, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def _summary(found: list[Record]) -> list[str]:
    lines = []
    for dtype in ("float32", "float64", "complex64", "bfloat16"):
        mine = [record for record in found if record["dtype"] == dtype]
        inexact = [] if dtype == "bfloat16" else [n for n, d in LIMITS if d == dtype]
        for names, chosen in [
            ("", [record for record in mine if record["optimizer"] not in inexact]),
            *((f" {name}", [record for record in mine if record["optimizer"] == name]) for name in inexact),
        ]:
            bits, values = (sum(record[key] for record in chosen) for key in ("bits", "values"))
            worst = f", at the end up to {max(record['distance'] for record in chosen):.3g} eps" if bits else ""
            lines.append(
                f"bit parity with torch, {dtype}{names}: {len(chosen)} configurations, {values:,} numbers, "
                f"{bits} differing bits{worst}"
            )
    return [line for line in lines if " 0 configurations" not in line]


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_no_bit_differs(name: str, dtype: str, records: list[Record]) -> None:
    mine = [record for record in records if (record["optimizer"], record["dtype"]) == (name, dtype)]
    assert mine
    assert all(record["values"] > 0 for record in mine)
    limits = LIMITS.get((name, dtype))
    if limits is None:
        wrong = [record["first"] for record in mine if record["bits"]]
    else:
        wrong = [f"{r['distance']} eps: {r['first']}" for r in mine if r["distance"] > limits[r["steps"]]]
    assert not wrong, "\n".join(wrong)
