"""Defines the flags that several profiling commands share, and checks their values."""

from collections.abc import Iterable
from typing import Any

from absl import flags

from nfnet.errors import UserError
from nfnet.system.paths import define_path
from nfnet.variants import get_variant
from profiling.compile.worker_process import MEMORY_LIMIT_BYTES, TIME_LIMIT_SECONDS
from profiling.compiler_text.chips import CHIPS


def define_topology(default: str, note: str = "") -> None:
  """Defines --topology.

  Args:
    default: name of a slice.
    note: requirement on the slice, for the help text.
  """
  flags.DEFINE_string("topology", default, f"Slice; generations: {', '.join(CHIPS)}.{note}")


def define_kernels() -> None:
  """Defines --kernels."""
  flags.DEFINE_enum("kernels", "reference", ["reference", "pallas"], "How the ops are computed.")


def define_block_execution() -> None:
  """Defines --block_execution, which is None unless given."""
  flags.DEFINE_enum(
    "block_execution",
    None,
    ["scan", "unrolled"],
    "Loop over equal blocks, or unroll them; default: unroll up to 48 (F3) for Pallas kernels.",
  )


def define_gradient_dtype() -> None:
  """Defines --gradient_dtype, which is None unless given."""
  flags.DEFINE_enum(
    "gradient_dtype",
    None,
    ["bfloat16", "float32"],
    "Dtype in which chips exchange gradients; default: as configured.",
  )


def define_json() -> None:
  """Defines --json."""
  define_path("json", None, "Write everything to this file too.", use="write file")


def define_plot() -> None:
  """Defines --plot."""
  define_path("plot", None, "Write the plot to this PNG file.", use="write file", suffix=".png")


def define_limits(
  *,
  time_limit_seconds: float = TIME_LIMIT_SECONDS,
  memory_limit_bytes: float = MEMORY_LIMIT_BYTES,
) -> None:
  """Defines --time_limit_seconds and --memory_limit_gb.

  Args:
    time_limit_seconds: default of the first.
    memory_limit_bytes: default of the second.
  """
  flags.DEFINE_float("time_limit_seconds", time_limit_seconds, "Time limit of the compiler.")
  flags.DEFINE_float("memory_limit_gb", memory_limit_bytes / 1e9, "Memory limit of the compiler.")


def limits() -> dict[str, Any]:
  """Returns what `define_limits` defined, as arguments for functions that compile."""
  values = flags.FLAGS
  return {
    "time_limit_seconds": values.time_limit_seconds,
    "memory_limit_bytes": int(values.memory_limit_gb * 1e9),
  }


def check_variant(name: str, *, flag: str = "variant") -> None:
  """Checks the value of a flag.

  Args:
    name: name of a network.
    flag: flag that the name came from.

  Raises:
    UserError: there is no such network.
  """
  try:
    get_variant(name)
  except ValueError as error:
    raise UserError(f"--{flag}: {error}") from error


def check_some(flag: str, values: Iterable[str]) -> None:
  """Checks that a flag that takes a list has at least one value.

  Raises:
    UserError: the list is empty.
  """
  if not list(values):
    raise UserError(f"--{flag}= names none; separate several with commas")
