"""The command line: parse, call, done."""

from train.stopping import stopping

if __name__ == "__main__":
    stopping.listen()  # before anything that takes time

import sys

from train.errors import UsageError


def main() -> int:
    """Returns the exit status; `train.run` lists them."""
    try:
        from train.command_line import parse

        config = parse(sys.argv[1:])
        from train.run import run  # imports JAX, which --help does not need

        return run(config, stopping)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    from train import cache, output

    output.tolerate()
    cache.keep_compiled()
    sys.exit(main())
