"""Reports of steps that nobody compiled, with figures that a test chooses."""

from profiling.compile.compilation import Compilation
from profiling.estimate.report import StepReport
from profiling.estimate.step_time import COLLECTIVES, Row, StepTime


def compilation(*, hbm_bytes=2**30, **fields) -> Compilation:
  """Returns a compilation of an empty program."""
  given = {
    "hlo_text": "",
    "kernels": {},
    "lower_seconds": 1.0,
    "compile_seconds": 1.0,
    "peak_memory_bytes": 1,
    "coordinates": None,
    "versions": {"jax": "1"},
  }
  return Compilation(**(given | fields), hbm_bytes=hbm_bytes)


def compute_row(seconds) -> Row:
  """Returns a row that takes time and is not a collective."""
  return Row(part="stem", direction="forward", kind="convolution", seconds=seconds)


def collective_row(seconds) -> Row:
  """Returns a row of collectives."""
  return Row(part="collectives", direction="", kind="collective", seconds=seconds)


def step_time(*rows, collective_seconds=None, collective_bytes=0) -> StepTime:
  """Returns the time of a step.

  Args:
    *rows: where its time goes.
    collective_seconds: time in collectives; None if nothing overlaps with them.
    collective_bytes: size of what travels between the chips.
  """
  if collective_seconds is None:
    collective_seconds = sum(row.seconds for row in rows if row.part == COLLECTIVES)
  return StepTime(
    rows=rows, collective_seconds=collective_seconds, collective_bytes=collective_bytes
  )


def report(request, *rows, collective_seconds=None, collective_bytes=0, **compiled) -> StepReport:
  """Returns a report of a step.

  Args:
    request: which step.
    *rows: where its time goes.
    collective_seconds: time in collectives; None if nothing overlaps with them.
    collective_bytes: size of what travels between the chips.
    **compiled: fields of the compilation.
  """
  return StepReport(
    request=request,
    compilation=compilation(**compiled),
    time=step_time(*rows, collective_seconds=collective_seconds, collective_bytes=collective_bytes),
  )
