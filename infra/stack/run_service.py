"""What supervisord runs for a service: end what is left of its last process, then become the command.

    python -m infra.stack.run_service NAME COMMAND…

A server whose first process was killed leaves children that hold its ports: the next one could not start.
"""

from __future__ import annotations

import os
import sys

from infra.stack.leftovers import end, left_of
from infra.stack.services import WORKER


def main(name: str, *command: str) -> None:
    if name != WORKER:  # a run outlives its worker, and ends by itself
        end(left_of(os.environ["RSKD_STACK"], name))
    os.execv(command[0], command)


if __name__ == "__main__":
    main(*sys.argv[1:])
