"""What the documentation says runs, and the pages of the API have every public name."""

import ast
import contextlib
import doctest
import importlib
import inspect
import io
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from mkdocs.config import load_config
from mkdocs.structure.files import get_files
from mkdocs.structure.nav import get_navigation

import jaxopt_port
from tests.exact.compare import SETTINGS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MODULES = (
    "jaxopt_port",
    "jaxopt_port.lr_scheduler",
    "jaxopt_port.swa_utils",
    "jaxopt_port.torch_interop",
    "jaxopt_port.compare",
)
ALIASES = {"jaxopt_port.swa_utils.swalr", "jaxopt_port.swa_utils.swa_lr"}  # of lr_scheduler.swalr
FENCE = re.compile(r"^( *)```(\w+)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    line: int
    code: str
    output: str | None


def blocks(page: str) -> list[Block]:
    """The Python blocks of a page, each with the text block right after it, which is what it prints."""
    found: list[Block] = []
    end = 0
    for each in FENCE.finditer(page):
        body = re.sub(rf"^{each[1]}", "", each[3], flags=re.MULTILINE)
        if each[2] == "python":
            found.append(Block(page[: each.start()].count("\n") + 1, body, None))
        elif each[2] == "text" and found and not page[end : each.start()].strip():
            found[-1] = found[-1]._replace(output=body)
        end = each.end()
    return found


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_code_blocks_run_and_print_what_stands_below_them(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In order, in one namespace, in an empty folder."""
    code = blocks(path.read_text())
    if any("import torch\n" in block.code for block in code):
        pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": f"docs_{path.stem}"}
    for block in code:
        program = compile("\n" * block.line + block.code, str(path), "exec")
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(program, namespace)
        if block.output is not None:
            same = doctest.OutputChecker().check_output(block.output, printed.getvalue(), doctest.ELLIPSIS)
            assert same, f"{path.name}, line {block.line}, prints\n{printed.getvalue()}"


def test_the_checker_of_outputs_can_fail() -> None:
    page = '```python\nprint("a")\n```\n\n```text\na\n```\n\nwords\n\n```text\nnot an output\n```\n'
    assert blocks(page) == [Block(1, 'print("a")\n', "a\n")]


def public_names() -> set[str]:
    """What a public module lists in `__all__`, or imports by the name it has: `from ... import name as name`."""
    names: set[str] = set()
    for module in MODULES:
        found = importlib.import_module(module)
        imports = [x for x in ast.walk(ast.parse(inspect.getsource(found))) if isinstance(x, ast.ImportFrom)]
        exported = [each.asname for x in imports for each in x.names if each.asname == each.name]
        names |= {f"{module}.{name}" for name in getattr(found, "__all__", exported)}
    return names - set(MODULES) - ALIASES


def test_the_api_pages_have_every_public_name() -> None:
    shown = set()
    for page in (ROOT / "docs" / "api").glob("*.md"):
        shown |= set(re.findall(r"^::: (\S+)", page.read_text(), re.MULTILINE))
    assert public_names() - shown == set()


def test_the_script_of_a_user_has_every_public_name() -> None:
    """`.ci/run` runs it against the installed wheel."""
    tree = ast.parse((ROOT / "tests" / "installed" / "use.py").read_text())
    used = {each.attr for each in ast.walk(tree) if isinstance(each, ast.Attribute)}
    used |= {alias.name for each in ast.walk(tree) if isinstance(each, ast.ImportFrom) for alias in each.names}
    assert {name.rpartition(".")[2] for name in public_names()} - used == set()


def test_every_page_is_in_the_navigation() -> None:
    config = load_config(str(ROOT / "mkdocs.yml"))
    pages = {page.file.src_uri for page in get_navigation(get_files(config), config).pages}
    assert pages == {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}


def test_every_member_of_stop_has_a_docstring() -> None:
    source = Path(importlib.import_module("jaxopt_port.closure.stop").__file__ or "").read_text()
    for member in jaxopt_port.Stop:
        assert re.search(rf'^    {member.name} = {int(member)}\n    """', source, re.MULTILINE), member


def test_the_settings_of_the_exact_process_are_told() -> None:
    told = re.findall(r"`(--xla_[^`]+)`", (ROOT / "docs" / "parity.md").read_text())
    assert sorted(told) == sorted(SETTINGS["XLA_FLAGS"].split())
