"""config.json of a run folder: its settings, what it needs to go on with the same bits, and a checksum over both."""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from train.config import Config
from train.errors import UsageError

FILE = "config.json"
SCRATCH = ".config-"  # what it is called before it is whole


class RunSettings(NamedTuple):
    """What is recorded of a run when it begins.

    Args:
      config: its settings.
      id: of this run alone; its checkpoints have it too.
      needs: what its bits depend on besides: versions, device, cores, data.
    """

    config: Config
    id: str
    needs: dict[str, Any]

    def to_bytes(self) -> bytes:
        """The file."""
        content = {**self.config.to_json(), **self.needs, "id": self.id}
        return (json.dumps({**content, "sha256": _digest(content)}, indent=2) + "\n").encode()


def load(run: Path, argument: str = "--resume") -> RunSettings:
    """The settings of a run.

    Args:
      run: its folder.
      argument: what named it, for messages.

    Raises:
      UsageError: there is no such run, or its file was changed.
    """
    path = run / FILE
    try:
        content = json.loads(path.read_bytes())
        digest = content.pop("sha256")
        names = Config().to_json().keys() & content.keys()  # a run from before there was some flag goes on without it
        config = Config.from_json({name: content[name] for name in names})
        id = content["id"]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{argument} {run}: is not the folder of a run, whose {FILE} can be read ({error!r})"
        ) from error
    if digest != _digest(content):
        raise UsageError(f"{argument} {run}: its {FILE} was changed since the run began; put it back as it was")
    return RunSettings(config, id, {name: value for name, value in content.items() if name not in {*names, "id"}})


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
