"""The command `vita`: a table of subcommands, imported only when asked for, and one clear line for an error of the user."""

from __future__ import annotations

import argparse
import difflib
import importlib
import io
import os
import select
import signal
import sys
import traceback
from contextlib import redirect_stderr, redirect_stdout
from typing import Mapping, Optional, Sequence

from mindspeed_vita.addresses import is_address
from mindspeed_vita.engine.stopping import report_status
from mindspeed_vita.files.write_fault import one_line
from mindspeed_vita.quiet import quiet_imports

# name -> (module with run and add_arguments, or with ACTIONS: name -> (one line of help, add_arguments); one line of help)
COMMANDS = {
    "train": ("mindspeed_vita.cli.train", "train a recipe"),
    "pipeline": ("mindspeed_vita.cli.pipeline", "train stages one after the other, with gates in between"),
    "check": ("mindspeed_vita.cli.check", "say whether a recipe would start: settings, layout, data, weights"),
    "plan": ("mindspeed_vita.cli.plan", "memory, work and collectives of a recipe's step on devices that are not here; other layouts"),
    "schema": ("mindspeed_vita.cli.schema", "print the JSON schema of a recipe: editors complete and check recipes with it"),
    "data": ("mindspeed_vita.cli.data", "index, plan, count, check and look at the data of a recipe"),
    "convert": ("mindspeed_vita.cli.convert", "convert checkpoints: native, Hugging Face, MindSpeed-LLM, Megatron"),
    "verify": ("mindspeed_vita.cli.verify", "say whether two checkpoints, of whatever formats, hold the same model"),
    "checkpoint": ("mindspeed_vita.cli.checkpoint", "list, verify, prune and reshard the steps of a run"),
    "lineage": ("mindspeed_vita.cli.lineage", "say where a checkpoint's weights come from: runs, data, code, conversions"),
    "report": ("mindspeed_vita.cli.report", "draw the curves of runs as one HTML page, and compare the runs"),
    "watch": ("mindspeed_vita.cli.watch", "show in the terminal how a run goes, while it goes"),
    "eval": ("mindspeed_vita.cli.evaluate", "measure a model: held-out loss, visual needles, choice files"),
    "generate": ("mindspeed_vita.cli.generate", "ask a checkpoint about pictures and videos"),
    "chat": ("mindspeed_vita.cli.chat", "talk with a checkpoint in the terminal, over several turns"),
    "serve": ("mindspeed_vita.cli.serve", "serve a checkpoint: OpenAI's API, and a page to chat on"),
    "doctor": ("mindspeed_vita.cli.doctor", "say what this machine has; --parity: check that every parallel layout is exact on it"),
    "patches": ("mindspeed_vita.cli.patches", "the patches of upstream code: list them, compare them with upstream's sources"),
    "completion": ("mindspeed_vita.cli.completion", "print a script that lets bash, zsh or fish complete vita's arguments"),
}

_OUTPUT = (1, 2)
"""File descriptors of standard output and standard error."""


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run one subcommand.

    Returns:
        The exit status: 0 done, 1 a failure of ours, 2 an error of the user, 128 + n stopped by signal n, and what
        docs/guides/operations.md lists for a training that was stopped, hung or lost a process. Output that nobody reads
        any more (`vita ... | head`) counts as stopped by SIGPIPE, 141, and prints nothing.
    """
    try:
        status = _dispatch(list(sys.argv[1:] if argv is None else argv))
        report_status(status)
        return status
    except BrokenPipeError:
        if not _unread():
            raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for descriptor in _OUTPUT:  # or the interpreter's last flush would complain
            os.dup2(nowhere, descriptor)
        return _end("", 128 + signal.SIGPIPE)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        _parser().print_help()
        sys.stdout.flush()
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from mindspeed_vita import __version__

        print(__version__, flush=True)
        return 0
    name = arguments[0]
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean vita {close[0]}? " if close else ""
        print(f"vita: error: unknown command {name!r}; {hint}expected one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    return _guarded(name, arguments[1:])


def add_arguments(parser: argparse.ArgumentParser, name: str, action: str = "") -> None:
    """The arguments of a command, or of an action of a command that has actions (`vita data check`)."""
    module = importlib.import_module(COMMANDS[name][0])
    if action:
        parser.set_defaults(action=action)
        module.ACTIONS[action][1](parser)
    else:
        module.add_arguments(parser)


def actions_of(name: str) -> dict[str, str]:
    """The actions of a command, each with its line of help; none for most commands."""
    found = getattr(importlib.import_module(COMMANDS[name][0]), "ACTIONS", {})
    return {action: line for action, (line, _) in found.items()}


def _parse(name: str, arguments: list[str]) -> argparse.Namespace:
    """What stands before "--", and under `passed_on` what stands after it, for the commands that pass it on."""
    description, action, actions = COMMANDS[name][1], "", actions_of(name)
    if actions:
        command = _parser_of_actions(name, actions)
        if not arguments or arguments[0] in ("-h", "--help"):
            command.print_help()
            command.exit(0 if arguments else 2)
        action, *arguments = arguments
        if action not in actions:
            command.error(f"found {action!r} where an action is expected: {', '.join(actions)}")
        description = actions[action]
    program = f"vita {name} {action}".rstrip()
    command = argparse.ArgumentParser(prog=program, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(command, name, action)
    end = arguments.index("--") if "--" in arguments else len(arguments)
    # intermixed: overrides may come before, between and after the options
    parsed = command.parse_intermixed_args(arguments[:end])
    if arguments[end + 1 :] and not hasattr(parsed, "passed_on"):
        command.error(f"unexpected arguments after --: {' '.join(arguments[end + 1:])}")
    parsed.passed_on = arguments[end + 1 :]
    return parsed


def wrong_words(words: Sequence[str]) -> str:
    """What is wrong with the words after `vita`, as far as its arguments tell; empty: nothing. Nothing is run."""
    if not words or words[0] not in COMMANDS:
        return f"unknown command {' '.join(words[:1])!r}; expected one of {', '.join(COMMANDS)}"
    said = io.StringIO()
    try:
        with redirect_stdout(said), redirect_stderr(said):
            _parse(words[0], list(words[1:]))
    except SystemExit:
        lines = said.getvalue().strip().splitlines()
        return lines[-1].partition("error: ")[2] or "it asks for help"
    return ""


def _parser_of_actions(name: str, actions: Mapping[str, str]) -> argparse.ArgumentParser:
    lines = "\n".join(f"  {action:<8} {line}" for action, line in actions.items())
    return argparse.ArgumentParser(
        prog=f"vita {name}",
        usage=f"vita {name} ACTION [ARGUMENTS]",
        description=f"{COMMANDS[name][1]}\n\nactions:\n{lines}\n\n`vita {name} ACTION --help` tells more about each.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _parser() -> argparse.ArgumentParser:
    lines = "\n".join(f"  {name:<11} {description}" for name, (_, description) in COMMANDS.items())
    return argparse.ArgumentParser(
        prog="vita",
        usage="vita COMMAND [ARGUMENTS]",
        description=f"Train and run Long-VITA.\n\ncommands:\n{lines}\n\n`vita COMMAND --help` tells more about each.",
        epilog="Exit status: 0 done, 2 an error that its message says how to mend, 1 a problem found or a fault of vita's own,\n"
        "128+n stopped by signal n. VITA_TRACEBACK=1 in the environment shows where an error came from.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _guarded(name: str, words: list[str]) -> int:
    """Run a command; an error of the user or a stop ends in one line. Under torchrun one process prints it and all fail."""
    try:
        try:
            arguments = _parse(name, words)
            quiet_imports()
            module = importlib.import_module(COMMANDS[name][0])
            _fetch(arguments, getattr(module, "CHECKPOINTS", ()))
            return int(module.run(arguments))
        finally:
            sys.stdout.flush()
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("", "mindspeed_vita"):
            return _failed()
        return _refused(error, f"the package {missing} is not installed for {sys.executable}; run: source .venv/bin/activate   "
                        "(bash scripts/setup_env.sh makes .venv)")  # fmt: skip
    except (ValueError, OSError) as error:
        if isinstance(error, BrokenPipeError) and _unread():
            raise
        return _refused(error, one_line(error))
    except KeyboardInterrupt:
        return _end("vita: stopped by SIGINT", 130)
    except BaseException as error:
        # a module that was not imported cannot have raised what it defines
        faults, stopping, session = (sys.modules.get(f"mindspeed_vita.engine.{name}") for name in ("faults", "stopping", "session"))
        if session is not None and isinstance(error, session.NotConnected):
            return _end(f"vita: error: {error}", error.status)
        if faults is not None and isinstance(error, faults.TrainingDiverged):
            return _end(f"vita: error: {error}", 2)
        if stopping is not None and isinstance(error, stopping.Stopped):
            return _end(f"vita: {error}", 128 + error.number)
        if isinstance(error, SystemExit):
            raise
        return _failed()


def _fetch(arguments: argparse.Namespace, names: Sequence[str]) -> None:
    """Puts the fetched folder in the place of each address of an object store."""
    for name in names:
        text = getattr(arguments, name)
        if is_address(text):
            from mindspeed_vita.checkpoint.fetched import local_copy

            vars(arguments)[name] = str(local_copy(text))


def _refused(error: Exception, line: str) -> int:
    if os.environ.get("VITA_TRACEBACK"):
        traceback.print_exception(error)
    return _end(f"vita: error: {line}", 2)


def _failed() -> int:
    """A bug, or a process group that broke because another process ended: only the first to fail explains itself."""
    if _first():
        traceback.print_exc()
    return _end("", 1)


def _unread() -> bool:
    """Whether the reader of this process's output has gone: a pipe without a reader polls as an error."""
    poll = select.poll()
    for descriptor in _OUTPUT:
        poll.register(descriptor, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _first() -> bool:
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return True
    from mindspeed_vita.engine.session import first_to_report

    return first_to_report()


def _end(line: str, status: int) -> int:
    if line and _first():
        print(line, file=sys.stderr, flush=True)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        report_status(status)
        if shared := sys.modules.get("mindspeed_vita.data.pack_share"):
            shared.remove_all()
        if session := sys.modules.get("mindspeed_vita.engine.session"):
            session.stay_for_others()
        # leaving in order would wait for processes that are gone
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(status)
    return status


if __name__ == "__main__":
    sys.exit(main())
