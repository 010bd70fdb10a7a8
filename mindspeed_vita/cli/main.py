"""The command `vita`: a table of subcommands, imported only when asked for, and one clear line for an error of the user."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from typing import Optional, Sequence

# name -> (module with add_arguments and run, one line of help)
COMMANDS = {
    "train": ("mindspeed_vita.cli.train", "train a recipe"),
    "check": ("mindspeed_vita.cli.check", "say whether a recipe would start: settings, layout, data, weights"),
    "data": ("mindspeed_vita.cli.data", "index, plan, count, check and look at the data of a recipe"),
    "convert": ("mindspeed_vita.cli.convert", "convert checkpoints between native and Hugging Face format"),
    "generate": ("mindspeed_vita.cli.generate", "ask a checkpoint about pictures and videos"),
    "doctor": ("mindspeed_vita.cli.doctor", "say what this machine has; --parity: check that every parallel layout is exact on it"),
    "patches": ("mindspeed_vita.cli.patches", "the patches of upstream code: list them, compare them with upstream's sources"),
}


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run one subcommand; returns the exit status: 0 done, 2 an error of the user, 1 a failure of ours, 128+n stopped by signal n."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    if not arguments or arguments[0] in ("-h", "--help"):
        parser.print_help()
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from mindspeed_vita import __version__

        print(__version__)
        return 0
    name = arguments[0]
    if name not in COMMANDS:
        print(f"vita: error: unknown command {name!r}; expected one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    module_name, description = COMMANDS[name]
    module = importlib.import_module(module_name)
    command = argparse.ArgumentParser(prog=f"vita {name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    module.add_arguments(command)
    return _guarded(module.run, _parse(command, arguments[1:]))


def _parse(command: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    """What stands before "--", and under `passed_on` what stands after it, for the commands that pass it on."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    parsed = command.parse_args(arguments[:end])
    if arguments[end + 1 :] and not hasattr(parsed, "passed_on"):
        command.error(f"unexpected arguments after --: {' '.join(arguments[end + 1:])}")
    parsed.passed_on = arguments[end + 1 :]
    return parsed


def _parser() -> argparse.ArgumentParser:
    lines = "\n".join(f"  {name:<10} {description}" for name, (_, description) in COMMANDS.items())
    return argparse.ArgumentParser(
        prog="vita",
        usage="vita COMMAND [ARGUMENTS]",
        description=f"Train and run Long-VITA.\n\ncommands:\n{lines}\n\n`vita COMMAND --help` tells more about each.",
        epilog="Exit status: 0 done, 2 an error that its message says how to mend, 1 a problem found or a fault of vita's own,\n"
        "128+n stopped by signal n. VITA_TRACEBACK=1 in the environment shows where an error came from.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _guarded(run: object, arguments: argparse.Namespace) -> int:
    """Call run; an error of the user or a stop ends in one line. Under torchrun one process prints it and all fail."""
    assert callable(run)
    try:
        return int(run(arguments))
    except (ValueError, OSError) as error:
        if os.environ.get("VITA_TRACEBACK"):
            traceback.print_exc()
        return _end(f"vita: error: {_one_line(error)}", 2)
    except KeyboardInterrupt:
        return _end("vita: stopped by SIGINT", 130)
    except BaseException as error:
        from mindspeed_vita.engine.faults import TrainingDiverged
        from mindspeed_vita.engine.stopping import Stopped

        if isinstance(error, TrainingDiverged):
            return _end(f"vita: error: {error}", 2)
        if isinstance(error, Stopped):
            return _end(f"vita: {error}", 128 + error.number)
        if isinstance(error, SystemExit):
            raise
        # a bug, or a process group that broke because another process ended: only the first to fail explains itself
        if _first():
            traceback.print_exc()
        return _end("", 1)


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def _first() -> bool:
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return True
    from mindspeed_vita.engine.session import first_to_report

    return first_to_report()


def _end(line: str, status: int) -> int:
    if line and _first():
        print(line, file=sys.stderr, flush=True)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # leaving in order would wait for processes that are gone
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(status)
    return status


if __name__ == "__main__":
    sys.exit(main())
