"""Reports of steps that nobody compiled, with figures that a test chooses."""

from profiling.compile.compilation import Compilation
from profiling.estimate.report import StepReport
from profiling.estimate.step_time import Row, StepTime


def compilation(*, hbm_bytes=2**30, **fields) -> Compilation:
  """Returns a compilation of an empty program."""
  given = {
    "hlo_text": "",
    "kernels": {},
    "lower_seconds": 1.0,
    "compile_seconds": 1.0,
    "peak_memory_bytes": 1,
    "versions": {"jax": "1"},
  }
  return Compilation(**(given | fields), hbm_bytes=hbm_bytes)


def compute_row(seconds) -> Row:
  """Returns a row that takes time and is no collective."""
  return Row(part="stem", direction="forward", kind="convolution", seconds=seconds)


def collective_row(seconds) -> Row:
  """Returns a row of collectives."""
  return Row(part="collectives", direction="", kind="collective", seconds=seconds)


def report(request, *rows, collective_bytes=0, **compiled) -> StepReport:
  """Returns a report of a step.

  Args:
    request: which step.
    *rows: where its time goes.
    collective_bytes: size of what travels between the chips.
    **compiled: fields of the compilation.
  """
  return StepReport(
    request=request,
    compilation=compilation(**compiled),
    time=StepTime(rows=rows, collective_bytes=collective_bytes),
  )
