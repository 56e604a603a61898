"""The reproduction without Prefect: python -m rskd.reproduction --scale gpu-1 --text FOLDER."""

from rskd.cli import run_app
from rskd.reproduction.command import as_app
from rskd.reproduction.run import reproduce

run_app(as_app(reproduce))
