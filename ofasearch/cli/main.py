"""The `ofasearch` command. Subcommands are imported when they are called, so that `--help` answers at once."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping

import click

from ofasearch.cli.show import plain
from ofasearch.errors import OfaSearchError

SENTENCE_LIMIT = 800  # characters; what libraries and foreign files put into a message has no end of its own

# name -> (module, attribute, one line for the overview)
Commands = Mapping[str, tuple[str, str, str]]
COMMANDS: Commands = {
    "find": ("ofasearch.cli.find", "find", "Search the best subnet within a budget, check it, export it."),
    "regnas": ("ofasearch.cli.regnas", "regnas", "Search the best subnet that keeps what a reference gets right."),
    "pareto": ("ofasearch.cli.pareto", "pareto", "Search the whole front of accuracy and costs."),
    "replay": ("ofasearch.cli.replay", "replay", "Repeat a search from its folder and compare the answers."),
    "train": ("ofasearch.cli.train", "train", "Train a supernet."),
    "finetune": ("ofasearch.cli.finetune", "finetune", "Train a subnet for a few epochs more, alone."),
    "bn-check": ("ofasearch.cli.bn_check", "bn_check", "How many images a subnet's batch norm needs."),
    "eval": ("ofasearch.cli.subnet", "evaluate", "Top-1 of a subnet or an ONNX file."),
    "flips": ("ofasearch.cli.flips", "flips", "What a new network gets wrong that an old one got right."),
    "export": ("ofasearch.cli.subnet", "export", "Write a subnet as a proved ONNX file."),
    "quantize": ("ofasearch.cli.quantize", "quantize", "Write a network in int8 and say what it costs."),
    "bench": ("ofasearch.cli.subnet", "bench", "Time an ONNX file on this machine."),
    "inspect": ("ofasearch.cli.subnet", "inspect", "Show what a file says of itself."),
    "explain": ("ofasearch.cli.explain", "explain", "Where the milliseconds and MACs of a network go."),
    "diff": ("ofasearch.cli.explain", "diff", "What changes in time and size between two networks."),
    "predictor": ("ofasearch.cli.predictor", "predictor", "Fit, check and use accuracy predictors."),
    "latency": ("ofasearch.cli.latency", "latency", "Latency tables."),
    "supernet": ("ofasearch.cli.supernet", "supernet", "Shipped supernets and their measured members."),
    "data": ("ofasearch.cli.data", "data", "Data sets: what is in them, what is damaged."),
    "space": ("ofasearch.cli.space", "space", "Design spaces: list, show, sample, cost."),
}


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports one only to run it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command itself, imported now."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The overview, without importing any command."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ofasearch")
def cli() -> None:
    """Turn a trained once-for-all supernet into the network for your device.

    Start with: ofasearch find --target cpu --latency 0.5ms
    """


def main() -> None:
    """Run the command line; every failure on purpose is one sentence on stderr and an exit code."""
    sys.exit(run(sys.argv[1:]))


def run(argv: list[str]) -> int:
    """The exit code of one command: 0 done, 1 failed, 2 wrong usage, 3 impossible budget, 130 interrupted."""
    try:
        cli.main(args=argv, prog_name="ofasearch", standalone_mode=False)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # since click 8.2; its message is the group's help, not a sentence
            click.echo(error.format_message(), err=True)
            return 2
        hint = f"; see `{error.ctx.command_path} --help`" if isinstance(error, click.UsageError) and error.ctx else ""
        return _fail(error.format_message().rstrip(".") + hint, 2 if isinstance(error, click.UsageError) else 1)
    except (KeyboardInterrupt, click.exceptions.Abort):
        return _fail(
            "interrupted; what was measured or checkpointed is kept, run the command again to go on (searching, training: --resume)", 130
        )
    except OfaSearchError as error:
        return _fail(str(error), error.exit_code)
    except BrokenPipeError:
        return 1  # the reader of our output left
    except OSError as error:
        return _fail(f"{error.filename or 'a file'} must be readable and writable, but the system says: {error.strerror or error}", 1)
    return 0


def _fail(sentence: str, code: int) -> int:
    sentence = plain(" ".join(sentence.split()))
    if len(sentence) > SENTENCE_LIMIT:
        sentence = f"{sentence[:SENTENCE_LIMIT]} ..."
    click.echo(f"ofasearch: {sentence}", err=True)
    return code


if __name__ == "__main__":
    main()
