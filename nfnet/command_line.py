"""What all commands share: flags, exit codes, one line for an error, no search for absent TPUs."""

import importlib.util
import os
import pathlib
import sys
import traceback
from collections.abc import Callable

from absl import app, flags, logging

from nfnet.errors import UserError

# Of TPU v4 and earlier, and of v5e and later.
_DEVICE_FILES = ("accel[0-9]*", "vfio/[0-9]*")
_GPU_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm7_plugin")


def skip_absent_tpu(devices: str = "/dev") -> None:
  """Restricts JAX to the CPU, unless there may be a TPU or GPU or the user has chosen.

  To be called before JAX starts its devices; JAX may be imported already.

  Args:
    devices: folder of device files.
  """
  if "JAX_PLATFORMS" in os.environ or importlib.util.find_spec("libtpu") is None:
    return
  if any(any(pathlib.Path(devices).glob(pattern)) for pattern in _DEVICE_FILES):
    return
  # Named explicitly, a GPU that is not there would be an error.
  if any(importlib.util.find_spec(plugin) for plugin in _GPU_PLUGINS):
    return
  os.environ["JAX_PLATFORMS"] = "cpu"
  if "jax" in sys.modules:
    sys.modules["jax"].config.update("jax_platforms", "cpu")


def refuse_arguments(arguments: list[str]) -> None:
  """For a `main` that takes flags only.

  Args:
    arguments: what the parser left: the program's name and, wrongly, more.

  Raises:
    UserError: there is more.
  """
  if len(arguments) > 1:
    raise UserError(f"unexpected argument {arguments[1]!r}: every argument is --NAME=VALUE")


def report_error(error: BaseException) -> int:
  """Says on stderr what has ended the program: one line, or a traceback of what nobody expects.

  Args:
    error: that `main` has raised.

  Returns:
    The exit code: 2 for what the user can mend, 130 when interrupted, 1 for all else.
  """
  sys.stdout.flush()
  if isinstance(error, KeyboardInterrupt):
    print("interrupted", file=sys.stderr, flush=True)
    return 130
  if isinstance(error, UserError | flags.Error):
    print(f"error: {error}", file=sys.stderr, flush=True)
    return 2
  traceback.print_exception(error)
  return 1


def run_main(
  main: Callable[[list[str]], None],
  *,
  flags_parser: Callable[[list[str]], list[str]] | None = None,
) -> None:
  """Runs `main` under absl; a `UserError` becomes one line on stderr and exit code 2.

  On a machine without TPU or GPU, JAX is kept from looking for one.

  Args:
    main: takes what the parser left of the arguments.
    flags_parser: parses sys.argv; None is absl's own.
  """

  def parse_quietly(arguments: list[str]) -> list[str]:
    rest = (flags_parser or flags.FLAGS)(arguments)
    # absl would show INFO next, and Orbax writes some 100 such lines for each checkpoint.
    if flags.FLAGS["verbosity"].using_default_value:
      flags.FLAGS.verbosity = logging.WARNING
    return rest

  skip_absent_tpu()
  # Around all of absl, because its parsing of the arguments can raise too.
  try:
    app.run(main, flags_parser=parse_quietly)
  except (UserError, flags.Error, KeyboardInterrupt) as error:
    sys.exit(report_error(error))
