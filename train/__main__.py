"""The command line: parse, call, done."""

import sys

from train.config import parse
from train.errors import UsageError


def main() -> int:
    try:
        config = parse(sys.argv[1:])
        from train.run import run  # imports JAX, which --help does not need

        return run(config)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
