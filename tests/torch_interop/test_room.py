"""The folders of torch_interop: what each may import of ours, and that its jobs are named and called alike."""

import ast
import inspect
from pathlib import Path

import pytest

from jaxopt_port import torch_interop

ROOM = Path(torch_interop.__file__).parent
BELOW = {"files": (), "random": (), "layouts": ("files",), "states": ("files", "layouts")}
NAME = torch_interop.__name__


def imported(path: Path) -> set[str]:
    """The modules that a file names in its imports, those inside functions too."""
    found = ast.walk(ast.parse(path.read_text()))
    return {
        name
        for each in found
        if isinstance(each, ast.Import | ast.ImportFrom)
        for name in (
            [f"{each.module}.{x.name}" for x in each.names]
            if isinstance(each, ast.ImportFrom)
            else [x.name for x in each.names]
        )
    }


@pytest.mark.parametrize("folder", BELOW)
def test_what_a_folder_imports_of_ours(folder: str) -> None:
    files = sorted((ROOM / folder).glob("*.py"))
    ours = {name for path in files for name in imported(path) if name.split(".")[0] == NAME.split(".")[0]}
    assert ours
    inside = {name for name in ours if name.startswith(f"{NAME}.")}
    allowed = tuple(f"{NAME}.{each}." for each in (folder, *BELOW[folder]))
    assert all(f"{name}.".startswith(allowed) for name in inside)
    if folder in ("files", "random"):  # nothing else of the library either
        assert inside == ours


def test_jobs_are_called_alike() -> None:
    """`load_x(..., state_dict, ...)` and `x_state_dict(what, its state, ...)`, the parameters before the mapping."""
    jobs = {
        name: list(inspect.signature(x).parameters) for name, x in vars(torch_interop).items() if inspect.isfunction(x)
    }
    states = {name.removeprefix("load_") for name in jobs if name.startswith("load_") and "state_dict" in jobs[name]}
    assert states == {name.removesuffix("_state_dict") for name in jobs if name.endswith("_state_dict")}
    for arguments in jobs.values():
        if {"params", "mapping"} <= set(arguments):
            assert arguments.index("mapping") == arguments.index("params") + 1
        if {"state_dict", "params"} <= set(arguments):
            assert arguments.index("state_dict") < arguments.index("params")
