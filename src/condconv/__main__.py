"""The command `condconv`, and `python -m condconv`, which is what `accelerate launch -m` starts."""

import sys


def main() -> int:
    """Run the command line; Ctrl-C before it is loaded ends it without a word.

    Returns:
        The exit status, as `condconv.cli.main.main` does.
    """
    try:
        from condconv.cli.main import main as run
    except KeyboardInterrupt:
        return 130
    return run()


if __name__ == "__main__":
    sys.exit(main())
