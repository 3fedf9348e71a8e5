"""The command line: parse, call, done."""

from train.stopping import stopping

if __name__ == "__main__":
    stopping.listen()  # before anything that takes time

import sys
from collections.abc import Sequence

from train.errors import UsageError
from train.processes import watched


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status; `train.run` lists them.

    Args:
      argv: the flags, by default the process's.
    """
    try:
        from train.command_line import parse

        config = parse(sys.argv[1:] if argv is None else argv)

        def work() -> int:
            from train.run import run  # imports JAX, which --help does not need

            return run(config, stopping)

        return work() if config.coordinator is None else watched(work, stopping)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    from train import cache, output

    output.tolerate()
    cache.keep_compiled()
    sys.exit(main())
