"""The command line: its commands, and the one place where errors become exit codes. Knows no work.

Commands that need torch or Ray import them when they run, so that the others start at once.
"""

import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from batchdet import __version__
from batchdet.cli import analysis, demo, label, models
from batchdet.cli.calibrate import calibrate
from batchdet.cli.compact import compact
from batchdet.cli.diff import diff
from batchdet.cli.doctor import doctor
from batchdet.cli.evaluate import evaluate
from batchdet.cli.nightly import nightly
from batchdet.cli.publish import publish
from batchdet.cli.refilter import refilter
from batchdet.cli.retrain import retrain
from batchdet.errors import BatchdetError, ConfigError, InterruptedRunError
from batchdet.storage.names import printable_name

HELP = """
Label a whole bucket of images with a trained detector.

\b
batchdet demo
batchdet label --source s3://photos/2026/ --output s3://labels/photos \\
               --model torchvision:ssdlite320_mobilenet_v3_large
batchdet audit s3://labels/photos
batchdet query s3://labels/photos "SELECT * FROM current_detections LIMIT 9"

\b
Exit codes: 0 done, 1 a run ended with open shards or over its failure rate,
2 wrong arguments or config, 3 audit or gate failed or an alarm was raised, 75 another run holds the output.
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
    help=HELP,
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


for _command in (
    demo.demo,
    label.label,
    label.plan,
    analysis.audit,
    analysis.runs,
    analysis.sql,
    analysis.query,
    diff,
    publish,
    nightly,
    refilter,
    compact,
    retrain,
    evaluate,
    calibrate,
    doctor,
):
    app.command()(_command)
app.add_typer(models.app)


def run(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command as this process, and end it; SIGTERM stops it in order, as Ctrl-C does."""
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    code = main(arguments)
    here = threading.main_thread()
    if any(thread is not here and not thread.daemon for thread in threading.enumerate()):
        # Only an interrupted command leaves threads behind, and Python would wait for what they read or detect.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: without the program's name; None for those of the process.

    Returns:
        The exit code. With BATCHDET_DEBUG set, an error is raised with its traceback instead.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        _require_utf8(given)
        code = app(args=given or ["--help"], prog_name="batchdet", standalone_mode=False)
    except typer.TyperException as error:
        sys.stderr.write(f"error: {_usage_problem(error)}\n")
        return error.exit_code
    except BatchdetError as error:
        if os.environ.get("BATCHDET_DEBUG"):
            raise
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return error.exit_code
    return code if isinstance(code, int) else 0


def _require_utf8(arguments: Sequence[str]) -> None:
    """What is given is recorded as text, and text is UTF-8."""
    for argument in arguments:
        if any("\ud800" <= letter <= "\udfff" for letter in argument):
            raise ConfigError(f"{printable_name(argument)}: not UTF-8; rename it")


def _usage_problem(error: typer.TyperException) -> str:
    """The message in one line, with where to read more."""
    message = " ".join(error.format_message().split()).removesuffix(".").replace(": Value error, ", ": ")
    context = getattr(error, "ctx", None)
    return message if context is None else f"{message}; see {context.command_path} --help"
