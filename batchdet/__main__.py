"""`python -m batchdet`."""

from batchdet.cli.main import run

run()
