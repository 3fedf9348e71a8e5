"""torch's `.pt` files, read and written without torch."""

import io
import os
from typing import IO, Any, Literal

from jaxopt_port.torch_interop.files import legacy_file, zip_archive
from jaxopt_port.torch_interop.files.pickle_check import check
from jaxopt_port.torch_interop.files.pickle_reader import PickleReader
from jaxopt_port.torch_interop.files.pickle_writer import write_pickle
from jaxopt_port.torch_interop.files.pt_types import PtFileError
from jaxopt_port.torch_interop.files.reads import Reads
from jaxopt_port.torch_interop.files.source import Source, mistaken, opened, written


def load(source: Source, *, mmap: bool = False, unknown: Literal["error", "keep"] = "error") -> Any:
    """`torch.load(source, weights_only=True)`, with NumPy arrays for tensors, and more than that reads.

    Nothing in the file is run: a closed list of types is read. Work and memory are in proportion to the file's size.

    Args:
      source: the path of a file that `torch.save` or `save` wrote, or one that is open for reading bytes, from where it
        stands: an `io.BytesIO`, `open(path, "rb")`. torch's format from before 1.6 is read too.
      mmap: map the file instead of reading it: arrays are read when they are used, may be written to without changing
        the file, and checksums are not checked. The file must stay as it is while they are in use. Of a path, and not
        of the format from before 1.6.
      unknown: what becomes of an object that is not plain data, a config object or a whole module: `"error"` says where
        it stands; `"keep"` puts an `Unknown` there, which shows what the file says of it.

    Returns:
      The object. A tensor, parameter or buffer, wherever it was, is an array of its dtype (ml_dtypes has bfloat16 and
      float8), without the plain attributes that it may have had; views of one tensor stay views of one array; an
      expanded tensor is a view too, that stands for more elements than there are. A torch.Size is a tuple, a dtype
      NumPy's, a device and a layout strings, `torch.__version__` a string. NumPy's numbers, strings, dtypes and arrays
      of these are read as such, and so are argparse.Namespace, paths, dates and times, defaultdict, deque, Counter,
      sets, range, slice and complex.

    Raises:
      PtFileError: the file is damaged, is not torch's, or holds more than plain data.
      OSError: the file cannot be opened.

    Example:
      >>> import tempfile, numpy as np
      >>> path = tempfile.mkdtemp() + "/model.pt"
      >>> save({"weight": np.ones(2, np.float32), "epoch": 3}, path)
      >>> load(path)
      {'weight': array([1., 1.], dtype=float32), 'epoch': 3}

    Source: torch/serialization.py, torch/_weights_only_unpickler.py.
    """
    if unknown not in ("error", "keep"):
        raise ValueError(f'unknown={unknown!r}: "error" or "keep"')
    if mmap and not isinstance(source, str | os.PathLike):
        raise ValueError("mmap=True needs a path, as torch.load's does")
    keep = unknown == "keep"
    with opened(source) as file, Reads(file) as reads:
        start = file.tell()
        head = file.read(legacy_file.HEAD)
        if magic := legacy_file.MAGIC.match(head):
            file.seek(start + magic.end())
            if mmap:
                raise PtFileError("a file of the format from before torch 1.6 cannot be mapped: mmap=False")
            return legacy_file.read(file, reads, keep)
        if not head.startswith(zip_archive.MAGIC):
            raise PtFileError(_not_torchs(head, file))
        file.seek(start)
        archive = zip_archive.Archive(file, reads, mmap)
        pickled = archive.read("data.pkl")
        return check(PickleReader(io.BytesIO(pickled), len(pickled), archive.storage).read(), len(pickled), keep)


def _not_torchs(head: bytes, file: IO[bytes]) -> str:
    if not head:
        return "the file is empty"
    if what := mistaken(head):
        return what
    if head[8:9] == b"{":  # after the header's size, its JSON
        return "the file is in the safetensors format: load_safetensors(path) reads it"
    file.seek(257)
    if file.read(5) == b"ustar":
        return "the file is a tar archive, as torch wrote before 0.1.10: no torch since 2.6 reads it by default either"
    if head.startswith((b"\x80", b"(")):
        return f"the file is a pickle, but not one of torch.save: it begins with {head!r}"
    return f"the file is not of torch.save: it begins with {head!r}"


def save(obj: Any, target: Source) -> None:
    """`torch.save(obj, target)`: a file for `torch.load(path, weights_only=True)`, with `mmap=True` too.

    The file appears whole or not at all; one that is there is replaced.

    Args:
      obj: NumPy and JAX arrays, numbers, strings, bytes, None, dtypes, and lists, tuples, sets, dicts, OrderedDicts and
        Counters of them. A NumPy number becomes a Python number, in keys too, a 0-dimensional array a tensor, and any
        other mapping (a FrozenDict, a defaultdict) a dict. Arrays that share memory share it in the file; any other is
        written C-contiguous.
      target: where to: a path, or a file that is open for writing bytes and stands at its beginning.

    Raises:
      PtFileError: something in `obj` has no counterpart in a `.pt` file; the message says where. Or the target is a
        device, a pipe or a folder.
      OSError: the file cannot be written.

    Example:
      >>> import tempfile, numpy as np
      >>> path = tempfile.mkdtemp() + "/optimizer.pt"
      >>> save({"state": {0: {"step": np.float32(1.0)}}, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999)}]}, path)
      >>> load(path)["param_groups"]
      [{'lr': 0.1, 'betas': (0.9, 0.999)}]

    Source: torch/serialization.py.
    """
    pickled, storages = write_pickle(obj)
    with written(target) as file:
        zip_archive.write(file, pickled, storages)
