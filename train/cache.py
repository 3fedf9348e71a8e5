"""Where this program keeps what it can make again: in the user's cache folder."""

import os
import platform
from pathlib import Path


def cache_root() -> Path:
    """Its folder there."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home).expanduser() if home else Path.home() / ".cache") / "jaxopt_port"


def keep_compiled() -> None:
    """Have JAX keep there what it compiles, each host its own, unless JAX's own variables say otherwise.

    For a process that has not imported JAX yet. What is damaged JAX compiles again, with a warning.
    """
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_root() / "compiled" / platform.node()))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")  # the rest is as quick to compile
