"""`empathy COMMAND ...`: the ways in. A value to vary goes into a file, not into a flag.

Commands are small and import what they need when they run, so that `plan` stays light.
"""

from __future__ import annotations

import argparse
import errno
import os
import select
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from jobs import choose

PIPE_CLOSED = 141
"""128 + SIGPIPE: what a shell says of a program that wrote on when nobody read any more."""
Command = Callable[[argparse.Namespace], int]


def _plan(args: argparse.Namespace) -> int:
    from jobs import plan

    return plan.plan(args.file, args.on, args.store, args.only, args.until, args.max_usd, args.all)


def _run(args: argparse.Namespace) -> int:
    from jobs import run

    return run.run(args.file, args.on, args.store, args.only, args.until, args.max_usd)


def _report(args: argparse.Namespace) -> int:
    from jobs import run

    return run.show(args.file, args.on, args.store, args.only)


def _submit(args: argparse.Namespace) -> int:
    from jobs import submit

    return submit.submit(
        args.file,
        args.on,
        args.store,
        args.address,
        wait=not args.no_wait,
        only=args.only,
        until=args.until,
        max_usd=args.max_usd,
    )


def _trace(args: argparse.Namespace) -> int:
    from jobs import trace

    return trace.trace(args.dialogue, args.file, args.on, args.store, args.only)


def _ledger(args: argparse.Namespace) -> int:
    from jobs import ledger

    return ledger.ledger(args.on, args.store)


def _explain(args: argparse.Namespace) -> int:
    from jobs import explain

    return explain.explain(args.artifact, args.on, args.store, args.file)


def _doctor(args: argparse.Namespace) -> int:
    from jobs import doctor

    return doctor.doctor(args.file, args.on, args.store)


def _serve(args: argparse.Namespace) -> int:
    from jobs import serve

    return serve.serve(args.students, args.file, args.on, args.store, args.host, args.port, args.key_env, args.merged)


def _export(args: argparse.Namespace) -> int:
    from jobs import export

    return export.export(args.student, args.file, args.on, args.store, args.to, args.merged)


def parser() -> argparse.ArgumentParser:
    """All commands and their arguments."""
    main = argparse.ArgumentParser(
        prog="empathy", description="Distil empathy from large language models into small students."
    )
    commands = main.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, action: Command, text: str, file: bool | str = True) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        if file:
            command.add_argument("file", nargs="?" if file == "?" else None, help="the experiment (a TOML file)")
        command.add_argument(
            "--on",
            metavar="PROFILE",
            help="where and how fast: a TOML file, or a name in infra/profiles (default: laptop)",
        )
        command.add_argument("--store", metavar="URL", help="a folder or s3://bucket/prefix, instead of the profile's")
        command.set_defaults(action=action)
        return command

    def only(command: argparse.ArgumentParser, *aliases: str) -> argparse.ArgumentParser:
        text = (
            'arms that have each of these words as a factor or its whole value, e.g. "regime=sft strategy=*naive" or '
            "gpt-4 (* and ? stand for letters); given again, more arms"
        )
        command.add_argument("--only", *aliases, dest="only", metavar="PATTERN", action="append", default=[], help=text)
        return command

    def chosen(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
        only(command)
        command.add_argument(
            "--until",
            metavar="KIND",
            help=f"stop after these stages: {', '.join(choose.UNTIL)}; or after one, given as KIND/KEY",
        )
        command.add_argument("--max-usd", metavar="X", type=float, help="a hard cap on what this run may spend")
        return command

    plan = chosen(add("plan", _plan, "say what a run would do, need and cost, and do nothing"))
    plan.add_argument("--all", action="store_true", help="list every stage with its key")
    chosen(add("run", _run, "make what is missing, down to the report"))
    submit = chosen(add("submit", _submit, "run on a Ray cluster as a Ray job"))
    submit.add_argument("--address", help="the cluster's job server, e.g. http://127.0.0.1:8265 (default: RAY_ADDRESS)")
    submit.add_argument("--no-wait", action="store_true", help="return once the job is accepted")
    only(add("report", _report, "write report.html anew from what the store holds"))
    trace = add("trace", _trace, "one dialogue's whole life, from raw row to verdict", file=False)
    trace.add_argument("dialogue", help="the dialogue's id")
    trace.add_argument("file", help="the experiment (a TOML file)")
    only(trace, "--arm")
    add("ledger", _ledger, "what was spent, by experiment, model and day, and what sharing saved", file=False)
    explain = add(
        "explain", _explain, "what an artifact is, and how its key differs from its nearest sibling's", file=False
    )
    explain.add_argument("artifact", help="a key, or its first digits, or kind/key")
    explain.add_argument("file", nargs="?", help="the experiment (a TOML file), for the command that makes it")
    add("doctor", _doctor, "check machine, packages, store, providers and (if given) an experiment", file="?")
    serve = add("serve", _serve, "put students behind an OpenAI-compatible endpoint", file=False)
    serve.add_argument(
        "students", nargs="+", help="names as `empathy plan` lists them, e.g. tiny tiny-sft-direct-rule-teacher-1"
    )
    serve.add_argument("--file", required=True, help="the experiment whose students these are")
    serve.add_argument("--host", default="127.0.0.1", help="address to bind (default: loopback only)")
    serve.add_argument("--port", type=int, default=8000, help="port to listen at (default: %(default)s)")
    serve.add_argument(
        "--key-env",
        default="EMPATHY_API_KEY",
        help="environment variable that holds the API key (default: %(default)s)",
    )
    serve.add_argument("--merged", action="store_true", help="one student, its adapter merged into its base")
    export = add("export", _export, "write a student as a folder that transformers and vLLM load", file=False)
    export.add_argument("student", help="its name, as `empathy plan` lists it")
    export.add_argument("--file", required=True, help="the experiment whose student it is")
    export.add_argument("--to", required=True, metavar="FOLDER", help="a new folder")
    export.add_argument("--merged", action="store_true", help="its adapter merged into its base: whole weights")
    return main


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 done, 2 something that the user can mend (said in one message), else a traceback."""
    args = parser().parse_args(arguments)
    try:
        return int(args.action(args))
    except ValueError as error:  # what a user can mend; everything else is ours and keeps its traceback
        print(f"empathy {args.command}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if not _mendable(error):
            raise
        from empathy.files import FULL

        full = "; make room there, and start again: what was made is kept" if error.errno in FULL else ""
        print(f"empathy {args.command}: {error}{full}", file=sys.stderr)
        return 2


def _mendable(error: OSError) -> bool:
    """A stored file that is not what was written (its message says what to delete), a place that may not be used, and a
    machine on which Ray does not start."""
    from cluster.session import RayDownError
    from empathy.artifact import CorruptError
    from empathy.files import FULL

    if isinstance(error, CorruptError | PermissionError | RayDownError):  # a bucket's has no number
        return True
    return error.errno in (errno.ENOTDIR, errno.EACCES, errno.EROFS, *FULL)


def console(arguments: Sequence[str] | None = None) -> NoReturn:
    """`main` as a process: ends with its code, without the libraries' own end.

    4 of 12 finished runs were aborted there ("terminate called without an active exception"), by Arrow's threads (see
    `Artifact.table`, where that is mended; Ray and vLLM bring threads of their own). Everything of ours is closed by
    then.
    """
    try:
        code = main(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        _end_if_nobody_reads()
        raise
    sys.stderr.flush()
    os._exit(code)


def _end_if_nobody_reads() -> None:
    """Whoever read our output (`| head`) has seen enough. Nothing happens when another pipe was broken."""
    output = select.poll()
    output.register(1, 0)  # errors alone: a pipe without a reader has one
    if output.poll(0):
        os._exit(PIPE_CLOSED)


if __name__ == "__main__":
    console()
