"""Start `hear-m2d`, also as `python -m hear_m2d`: Ctrl-C while modules load ends it without a traceback."""

import sys


def main() -> None:
    """Import the command line and run it; see :func:`hear_m2d.cli.main`."""
    try:
        from hear_m2d.cli import main as run
    except KeyboardInterrupt:
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
