"""The command line: runs a command, and reports errors. Each command is a file in commands/.

Exit status: 0 done, 1 a defect of understudy, 2 an error that the user can fix, 3 an audit found errors, stored
evidence does not hold, robot check found a difference, or more steps of act than allowed were clipped, stale or late;
130 interrupted and resumable.
"""

from __future__ import annotations

import _thread
import errno
import math
import os
import re
import shlex
import shutil
import signal
import sys
import threading
import time
import warnings
from functools import partial
from typing import Any

from . import __version__
from .commands.parts.command_list import COMMANDS, command_module, help_text
from .hints import escape_control, nearest_names
from .interrupts import INTERRUPTS, is_of_closed_terminal, leave_closed_terminal


def main(args: list[str] | None = None) -> int:
    """Runs one command. Returns the exit status."""
    _open_closed_streams()
    args = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in args
    args = [a for a in args if a != "--debug"]
    if not args or args[0] in ("-h", "--help", "help"):
        print(help_text(__version__, shutil.get_terminal_size().columns), end="")
        return 0
    if args[0] in ("-V", "-v", "--version"):
        print(__version__)
        return 0
    name = args[0]
    if name not in COMMANDS:
        suggestions = nearest_names(name, COMMANDS, cutoff=0.65)  # evaluate is near to eval
        _print_error(f"there is no command {name!r}; there are {', '.join(COMMANDS)}\n"
                     f"  -> understudy {shlex.join([*suggestions, *args[1:]]) if suggestions else '--help'}")
        return 2
    with _InterruptGuard() as interrupts, warnings.catch_warnings():
        show: Any = partial(_show_warning, warnings.showwarning, set())
        warnings.showwarning = show
        try:
            command_module(name).main(args[1:])
            sys.stdout.flush()
            return 0
        except SystemExit as error:  # of tyro: 0 after --help, 2 after a usage error that it has explained
            return error.code if isinstance(error.code, int) else 2
        except BrokenPipeError:  # the reader of our output has seen enough
            sys.stdout = None
            return 0
        except KeyboardInterrupt:
            return _report_interrupt(name, args)
        except Exception as error:
            if is_of_closed_terminal(error):
                interrupts.raised = time.monotonic()  # so that SIGHUP, which is on its way, changes nothing
                leave_closed_terminal(signal.SIGHUP)
                return _report_interrupt(name, args)
            if interrupts.was_interrupted:  # libraries turn an interrupt into errors of their own
                return _report_interrupt(name, args)
            return _report_failure(error, debug, args)


def _open_closed_streams() -> None:
    """Opens standard streams that the shell has closed to nowhere, so that no file takes their place."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # each gets the lowest free descriptor
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  (it stays open)


def _show_warning(otherwise, printed: set[str], message, category, *where) -> None:
    """Prints a warning of understudy without the source line, and once by each command."""
    from .core import DataWarning

    in_package = issubclass(category, UserWarning) and os.path.dirname(__file__) in where[0]
    if in_package or issubclass(category, DataWarning):
        if str(message) not in printed:  # several trainings of one command may ask the same of the same data
            print(escape_control(f"warning: {message}"), file=sys.stderr)
        printed.add(str(message))
    else:
        otherwise(message, category, *where)


# C++ libraries swallow an interrupt while they are imported, or abort the process.
class _InterruptGuard:
    """Turns Ctrl-C, termination and a closed terminal into KeyboardInterrupt, but not during imports."""

    ECHO_SECONDS = 2.0  # a closed terminal sends SIGHUP twice, and often SIGTERM too

    def __enter__(self):
        self.was_interrupted, self.before, self.later = False, {}, None
        self.raised = -math.inf
        if threading.current_thread() is threading.main_thread():
            for number in INTERRUPTS:
                if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                    self.before[number] = signal.signal(number, self.interrupt)
        return self

    def interrupt(self, number, frame):
        leave_closed_terminal(number)
        if number != signal.SIGINT and time.monotonic() - self.raised < self.ECHO_SECONDS:
            return  # the command is stopping
        self.was_interrupted = True
        if _is_importing(frame):
            self.later = threading.Timer(0.05, _raise_signal_again, (number,))
            self.later.daemon = True
            self.later.start()
        else:
            self.raised = time.monotonic()
            raise KeyboardInterrupt

    def __exit__(self, *error):
        if self.later is not None:
            self.later.cancel()
        for number, handler in self.before.items():
            signal.signal(number, handler)


def _raise_signal_again(number) -> None:
    if os.name == "posix":
        os.kill(os.getpid(), number)  # wakes the main thread, should it sleep
    else:
        _thread.interrupt_main(number)


def _is_importing(frame) -> bool:
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


def _report_interrupt(name: str, args: list[str]) -> int:
    command = COMMANDS[name]
    _print_error(("stopped; everything finished so far is kept, and the same command continues from there:"
                  if command.is_resumable else f"{command.interrupted}:")
                 + f"\n  understudy {shlex.join(args)}")
    return 130


def _report_failure(error: Exception, debug: bool, args: list[str]) -> int:
    if text := _user_error_message(error, args):
        if debug:
            _traceback(error)
        _print_error(text)
        return 2
    _traceback(error)
    _print_error("this is a defect of understudy: please report it with the lines above")
    return 1


def _user_error_message(error: Exception, args: list[str]) -> str | None:
    """Returns the message to print if the user can fix the error."""
    from .core import UserError, is_out_of_memory
    from .user_code import locate_user_error, trusted_packages

    if isinstance(error, UserError):
        return "\n  ".join([str(error), *getattr(error, "__notes__", ())])
    if is_out_of_memory(error):
        return ("memory is full\n  -> a smaller --batch-size or --image-size takes less in training, and fewer "
                "--rows or --workers in rollouts")
    if user_error := locate_user_error(error, trusted_packages(args)):
        return str(user_error)
    if not isinstance(error, OSError):
        return None
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{error.filename or 'disk'}: no space is left\n  -> make room; what was written before is complete"
    if error.filename is not None:  # the file system says no
        problem = (error.strerror or str(error)).lower()
        return f"{_target_path(str(error.filename))}: {problem}\n  -> choose a place that can be read and written"
    return None


def _target_path(path: str) -> str:
    """Returns the file or folder that was to be written, given the temporary one next to it."""
    folder, name = os.path.split(path)
    temporary = re.fullmatch(r"\.(.+)\.\w+\.(part|new)", name)
    return os.path.join(folder, temporary[1]) if temporary else path


def _traceback(error: Exception) -> None:
    import traceback

    traceback.print_exception(error, file=sys.stderr)


def _print_error(text: str) -> None:
    print(escape_control(f"understudy: {text}"), file=sys.stderr)
