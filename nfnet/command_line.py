"""Runs the `main` of commands: parses flags, reports errors in one line, sets the exit code.

No command ends because its output cannot be written (`nfnet.system.standard_streams`).
"""

import importlib.util
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Callable

from absl import app, flags, logging

import nfnet
from nfnet.errors import InUseError, UserError, escaped
from nfnet.system.console_script import as_started
from nfnet.system.interrupts import EXIT_INTERRUPTED, raise_keyboard_interrupt
from nfnet.system.standard_streams import StandardStreams, keep_running_without_readers

EXIT_UNEXPECTED_ERROR = 1
"""An error that nobody expected, printed with its traceback."""
EXIT_LOST_OUTPUT = 1
"""The output of a command could not be written; the reason is printed as one line."""
EXIT_USER_ERROR = 2
"""An error that the user can correct (`nfnet.errors.UserError`), printed as one line."""
EXIT_IN_USE = 16
"""Another process is using what this one needs (`nfnet.errors.InUseError`), so the same command may
succeed later. The number is that of the error EBUSY; neither shells nor sysexits.h use it."""

_PACKAGES = ("nfnet", "train", "profiling")
"""Packages whose modules define flags. What absl and others define is left to --helpfull."""

# The first pattern is that of TPU v4 and earlier, the second that of v5e and later.
_TPU_DEVICE_FILES = ("accel[0-9]*", "vfio/[0-9]*")
_GPU_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm7_plugin")
_ABSENT = re.compile(r"flag --(\w+)=None: Flag --\1 must have a value other than None\.")
_FLAG_ERRORS = (
  (
    re.compile(r"Unknown command line flag '(\w+)'\. Did you mean: (\w+).*"),
    r"unknown flag --\1; nearest: --\2",
  ),
  (
    re.compile(r"Unknown command line flag '(\w+)'"),
    r"unknown flag --\1; --help shows all flags",
  ),
  (re.compile(r"Missing value for flag --(\w+)"), r"--\1 has no value; write --\1=VALUE"),
  (re.compile(r"flag (--\w+=.*): invalid literal for int.*"), r"\1: must be a whole number"),
  (re.compile(r"flag (--\w+=.*): could not convert string to float.*"), r"\1: must be a number"),
)

_HELP = frozenset(
  f"{dashes}{name}" for dashes in ("-", "--") for name in ("help", "helpfull", "helpshort")
)

# Much longer than a terminal or a log takes to read a line.
_READER_SILENT_SECONDS_MAX = 5.0


def is_installed(module: str) -> bool:
  """Returns whether a module can be imported."""
  return importlib.util.find_spec(module) is not None


def skip_absent_tpu(
  devices: str = "/dev", is_installed: Callable[[str], bool] = is_installed
) -> None:
  """Restricts JAX to the CPU unless a TPU or GPU may be present or the user has chosen a platform.

  Without this, JAX searches for a TPU wherever libtpu is installed and complains on stderr that it
  found none. Call this before JAX initializes its devices; JAX may already be imported.

  Args:
    devices: folder of device files.
    is_installed: function that returns whether a module can be imported.
  """
  if "JAX_PLATFORMS" in os.environ or not is_installed("libtpu"):
    return
  if any(any(pathlib.Path(devices).glob(pattern)) for pattern in _TPU_DEVICE_FILES):
    return
  # "gpu,cpu" is not an alternative: JAX fails if a named platform is absent.
  if any(map(is_installed, _GPU_PLUGINS)):
    return
  os.environ["JAX_PLATFORMS"] = "cpu"
  if "jax" in sys.modules:
    sys.modules["jax"].config.update("jax_platforms", "cpu")


def refuse_arguments(arguments: list[str]) -> None:
  """Raises an error if the command line holds anything but flags.

  Args:
    arguments: arguments that are not flags: the program's name and any positional arguments.

  Raises:
    UserError: there are positional arguments.
  """
  if len(arguments) > 1:
    raise UserError(f"unexpected argument {arguments[1]!r}: every argument is --NAME=VALUE")


def flag_error_text(error: flags.Error) -> str:
  """Returns what is wrong with the flags of a command line: one line, and what to do.

  Args:
    error: what absl has raised; it has a line for each wrong flag.
  """
  lines = str(error).splitlines()
  absent = [match[1] for line in lines if (match := _ABSENT.fullmatch(line))]
  others = [line for line in lines if not _ABSENT.fullmatch(line)]
  for pattern, replacement in _FLAG_ERRORS:
    others = [pattern.sub(replacement, line) for line in others]
  if absent:
    needed = " and ".join(f"--{name}=VALUE" for name in absent)
    verb = "is" if len(absent) == 1 else "are"
    others.append(f"{needed} {verb} needed; --help shows all flags")
  return "; ".join(others)


def report_error(error: BaseException) -> int:
  """Prints on stderr what ended the program: one line, or a traceback for an unexpected error.

  Args:
    error: what `main` raised.

  Returns:
    Exit code: 2 for an error that the user can correct, 16 if another process is in the way, 130
    for an interrupt, 1 for any other.
  """
  sys.stdout.flush()
  if isinstance(error, KeyboardInterrupt):
    print("interrupted", file=sys.stderr, flush=True)
    return EXIT_INTERRUPTED
  if isinstance(error, UserError | flags.Error):
    reason = flag_error_text(error) if isinstance(error, flags.Error) else str(error)
    print(f"error: {as_started(escaped(reason))}", file=sys.stderr, flush=True)
    return EXIT_IN_USE if isinstance(error, InUseError) else EXIT_USER_ERROR
  traceback.print_exception(error)
  return EXIT_UNEXPECTED_ERROR


def run_main(
  main: Callable[[list[str]], None],
  *,
  flags_parser: Callable[[list[str]], list[str]] | None = None,
  prints_result: bool = True,
) -> None:
  """Runs `main` under absl; a `UserError` becomes one line on stderr and exit code 2.

  On a machine without TPU and GPU, JAX does not search for them (`skip_absent_tpu`). With
  --version, it prints the version and runs nothing.

  Args:
    main: function of the arguments that the flags' parser leaves.
    flags_parser: function that parses sys.argv; None is absl's parser.
    prints_result: whether the command has done its work only once its output is written. Otherwise
      it writes its results to files, so that lost output does not change the exit code, and does
      not wait for a reader that does not read.
  """

  def parse_quietly(arguments: list[str]) -> list[str]:
    rest = (flags_parser or flags.FLAGS)(arguments)
    # absl shows INFO by default, and Orbax logs about 100 such lines for each checkpoint.
    if flags.FLAGS["verbosity"].using_default_value:
      flags.FLAGS.verbosity = logging.WARNING
    return rest

  if "--version" in sys.argv[1:]:
    print(nfnet.__version__)
    return
  # absl knows the long form only.
  sys.argv[1:] = ["--help" if argument == "-h" else argument for argument in sys.argv[1:]]
  asks_for_help = not _HELP.isdisjoint(sys.argv[1:])
  # absl shows it as the usage.
  program = sys.modules["__main__"]
  program.__doc__ = as_started(program.__doc__ or "")
  _show_all_flags()
  streams = keep_running_without_readers(None if prints_result else _READER_SILENT_SECONDS_MAX)
  skip_absent_tpu()
  raise_keyboard_interrupt()
  # All of absl is inside, because parsing the arguments can raise too.
  try:
    app.run(main, flags_parser=parse_quietly)
  except (UserError, flags.Error, KeyboardInterrupt) as error:
    sys.exit(report_error(error))
  except SystemExit as finished:
    # absl ends every program this way, and with 1 if help was asked for, which is not a failure.
    if asks_for_help and finished.code == 1:
      finished.code = 0
    if finished.code or (error := _lost_output(streams)) is None:
      raise
    reason = f"standard output cannot be written: {error.strerror}"
    if prints_result:
      print(f"error: {reason}", file=sys.stderr, flush=True)
      sys.exit(EXIT_LOST_OUTPUT)
    print(f"{reason}; all files are complete", file=sys.stderr, flush=True)
    raise


def _show_all_flags() -> None:
  """Makes --help show the flags that other modules define for a command, as well as its own."""
  for module, defined in flags.FLAGS.flags_by_module_dict().items():
    if module.partition(".")[0] in _PACKAGES:
      for flag in defined:
        # This is the name under which absl looks for the flags of the program.
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)


def _lost_output(streams: StandardStreams) -> OSError | None:
  """Returns why output of the finished program was lost, or None."""
  streams.flush()
  return streams.error()
