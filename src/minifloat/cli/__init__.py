"""The command line: quantize, evaluate, bench, export, import, verify, show, demo.

Mistakes are answered with one sentence and exit code 2. Heavy imports wait inside the commands, so
that `--help` answers at once.
"""

import sys

import typer

from minifloat.cli.exchange import export, import_folder, verify
from minifloat.cli.judge import bench, evaluate
from minifloat.cli.run import demo, quantize
from minifloat.cli.show import show
from minifloat.errors import UserError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
for command in (quantize, demo, evaluate, export, verify, show, bench):
    app.command()(command)
app.command("import")(import_folder)


def main() -> None:
    """Entry point: runs the command and turns a user's mistake into one sentence and code 2."""
    try:
        app()
    except UserError as error:
        print(f"minifloat: {error}", file=sys.stderr)
        sys.exit(2)
