"""`import jaxopt_port` is quick because it imports nothing that jax and optax have not."""

import subprocess
import sys

PROGRAM = """
import sys, jax, optax
before = set(sys.modules)
import jaxopt_port
new = {name for name in sys.modules.keys() - before if name.partition(".")[0] not in sys.stdlib_module_names}
print(*sorted(name for name in new if not name.startswith("jaxopt_port")), *new & {"jaxopt_port.torch_interop"})
"""


def test_no_other_package_and_no_part_that_few_need_is_imported() -> None:
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []
