"""The command line: its commands, and the one place where errors become exit codes. Knows no work.

Commands that need torch or Ray import them when they run, so that the others start at once.
"""

import os
import signal
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from batchdet import __version__
from batchdet.cli import analysis, demo, label
from batchdet.errors import BatchdetError, InterruptedRunError

EXAMPLES = """
Label a whole bucket of images with a trained detector.

\b
  batchdet demo
  batchdet plan  --source s3://photos/2026/ --output s3://labels/photos --model torchvision:ssdlite320_mobilenet_v3_large
  batchdet label --source s3://photos/2026/ --output s3://labels/photos --model torchvision:ssdlite320_mobilenet_v3_large
  batchdet audit s3://labels/photos
  batchdet query s3://labels/photos "SELECT category, count(*) FROM current_detections GROUP BY category"

Exit codes: 0 done · 1 a run ended with open shards or over its failure rate · 2 wrong arguments or config ·
3 audit failed · 75 another run holds the output.
"""


class _Group(TyperGroup):
    """Ctrl-C becomes our error before typer makes another exit code of it."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            raise InterruptedRunError("stopped; what is committed stays, the same command goes on") from interrupt


app = typer.Typer(
    name="batchdet",
    cls=_Group,
    help=EXAMPLES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"batchdet {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


for _command in (demo.demo, label.label, label.plan, analysis.audit, analysis.runs, analysis.sql, analysis.query):
    app.command()(_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: without the program's name; None for those of the process.

    Returns:
        The exit code. With BATCHDET_DEBUG set, an error is raised with its traceback instead.
    """
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app(args=None if arguments is None else list(arguments), prog_name="batchdet")
    except BatchdetError as error:
        if os.environ.get("BATCHDET_DEBUG"):
            raise
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return error.exit_code
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0
