"""The command ``copcube``: its parser, its log and its exit codes.

Exit codes: 0 done, 1 failed (the message says what to do), 2 wrong usage, 3 done except for
partitions that killed their worker, 130 stopped by Ctrl-C, 143 by SIGTERM and 129 by SIGHUP, 141 if
the reader of the output went away. A command that fails ends with one line; ``--debug``, or
COPCUBE_DEBUG in the environment, shows the traceback instead.
"""

import argparse
import atexit
import contextlib
import gc
import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from functools import cache
from types import FrameType

from copcube.arguments import without_scheme
from copcube.cli import bench, build, data, look, lookup, probe, use
from copcube.errors import CopcubeError, OptionError, printable
from copcube.files.atomic import FULL
from copcube.files.damage import let_zarr_finish, naming_damage
from copcube.version import __version__

log = logging.getLogger("copcube")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; those of the process by default.

    Returns
    -------
    int
        The exit code.
    """
    # As Python ends, it would look through all objects for cycles, which takes a tenth of the time
    # of a short command.
    atexit.register(gc.freeze)
    for name in ("stdout", "stderr"):
        if (stream := getattr(sys, name)) is None:  # it was closed, as `>&-` does
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            # If the terminal lacks a letter, its number is shown, as Python does for errors.
            stream.reconfigure(errors="backslashreplace")
    given = sys.argv[1:] if argv is None else argv
    arguments = parser().parse_args([without_scheme(text) for text in given])
    _log_to_stderr(quiet=arguments.quiet)
    try:
        _refuse_empty(arguments)
        with _stopped_in_good_order(), naming_damage():
            code: int | None = arguments.run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt as stopped:
        let_zarr_finish(stopped, cancel=True)
        with contextlib.suppress(OSError):  # the terminal may be closed
            print("copcube: stopped; the same command continues from here", file=sys.stderr)
        return 128 + (stopped.signal if isinstance(stopped, _Stopped) else signal.SIGINT)
    except BrokenPipeError:
        # As with `| head`. Output not yet written would fail again when Python ends.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if arguments.debug or os.environ.get("COPCUBE_DEBUG"):
            raise
        print(f"copcube: {printable(_line(error))}", file=sys.stderr)
        return 1
    return code or 0


def _refuse_empty(arguments: argparse.Namespace) -> None:
    """Refuse empty texts, such as a shell's variables that are not set.

    `pathlib.Path` takes them for the current folder.
    """
    for name, value in vars(arguments).items():
        if value == "" or (isinstance(value, list) and "" in value):
            shown = name.replace("_", "-")
            raise OptionError(
                f"the argument {shown} is an empty text; give a value, or leave it out"
            )


class _Stopped(KeyboardInterrupt):
    """A signal with which batch systems, containers and closed terminals end a process."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.signal = number


@contextlib.contextmanager
def _stopped_in_good_order() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the body as Ctrl-C does; a second one ends the process at once.

    By default they end Python at once, which leaves locks and half-written files behind.
    """
    owner = os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        if os.getpid() != owner:  # a fork, which its parent may end like this
            os.kill(os.getpid(), number)
        raise _Stopped(number)

    heeded = []
    # Only the main thread may set what signals do. Under nohup, SIGHUP is ignored and stays so.
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)  # Windows has no SIGHUP
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                heeded.append(number)
                signal.signal(number, stop)
    try:
        yield
    finally:
        for number in heeded:
            signal.signal(number, signal.SIG_DFL)


def _line(error: Exception) -> str:
    """Put an error in one line, with its type if it is unexpected."""
    if isinstance(error, CopcubeError):
        return str(error)
    # The dynamic loader's words for a library that does not fit.
    if isinstance(error, MemoryError) or "failed to map segment" in str(error):
        why = f" ({' '.join(str(error).split())})" if str(error) else ""
        return f"there is too little memory{why}; free some, or process one part at a time"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, OSError) and error.errno in FULL:
        return f"the output cannot be written: {error.strerror}; choose another place for it"
    if isinstance(error, FileNotFoundError) and not _stands_somewhere():
        return "the working directory no longer exists; change to another one"
    if "can't start new thread" in str(error):
        return "no more threads can be started: the limit of processes or memory is reached"
    words = " ".join(f"{type(error).__name__}: {error}".split())
    # The end of a long message usually says most, and its beginning where it comes from.
    words = words if len(words) <= 400 else f"{words[:200]} … {words[-200:]}"
    return f"unexpected error, {words} (the same command with --debug shows where it comes from)"


def _stands_somewhere() -> bool:
    """Whether this process's working directory still exists."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


@cache
def parser() -> argparse.ArgumentParser:
    """Make the parser of the command line, once per process."""
    root = argparse.ArgumentParser(
        prog="copcube",
        description="Turn Copernicus Sentinel imagery into an embedding datacube on ERA5's grid.",
        epilog="Try it: copcube demo. Each command has its own --help with an example.",
    )
    root.add_argument("--version", action="version", version=f"copcube {__version__}")
    commands = root.add_subparsers(title="commands", metavar="COMMAND", required=True)
    data.add(commands)
    build.add(commands)
    use.add(commands)
    look.add(commands)
    lookup.add(commands)
    probe.add(commands)
    bench.add(commands)
    return root


def _log_to_stderr(*, quiet: bool) -> None:
    """Show the log's messages on the terminal, without times, or in a file with them."""
    # `main` may run more than once in a process.
    for old in log.handlers[:]:
        log.removeHandler(old)
    handler = logging.StreamHandler()
    plain = "%(message)s" if sys.stderr.isatty() else "%(asctime)s %(levelname)s %(message)s"
    handler.setFormatter(_Printable(plain, datefmt="%H:%M:%S"))
    log.addHandler(handler)
    log.setLevel(logging.WARNING if quiet else logging.INFO)
    log.propagate = False
    if quiet:
        # huggingface_hub reads it on import, which has not happened yet.
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # rasterio logs about broken images what the build's own log says with the file name.
    logging.getLogger("rasterio").setLevel(logging.CRITICAL)
    # About chunks that zarr is still reading when one turned out to be damaged.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)


class _Printable(logging.Formatter):
    """Log messages without control characters, which file names and errors may contain."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), lines=True)
