"""L-BFGS gives torch's numbers, bit for bit where sums are added in the same order, and torch's counts in any order.

The comparison runs in a process of its own (see exact.py).
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
Record = dict[str, Any]


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    path = tmp_path_factory.mktemp("exact") / "records"
    command = [sys.executable, "-m", "tests.closure.exact", "--short", "--json", str(path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert path.exists(), f"the comparison broke off:\n{done.stdout}{done.stderr}"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_bit_is_torchs_where_sums_are_added_in_the_same_order(records: list[Record]) -> None:
    assert len(records) > 40
    assert all(record["values"] for record in records)
    assert not [record for record in records if record["bits"] or not record["counts"]]


def test_every_count_is_torchs_with_torchs_own_sums(records: list[Record]) -> None:
    assert not [record for record in records if not record["own_counts"]]
