"""`rskd`, or `python -m rskd`: ready for ctrl-C before anything heavy is imported."""

from rskd import interrupts


def main() -> None:
    """Run the command line on the process's arguments."""
    interrupts.end_at_once()
    from rskd.cli import main as run

    run()


if __name__ == "__main__":
    main()
