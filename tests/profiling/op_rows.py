"""Rows of ops with figures that tests choose."""

from profiling.compiler_text.kernel_profiles import KernelProfile
from profiling.estimate.op_cycles import OpRow

PROFILE = KernelProfile(
  bundles=1000,
  is_upper_bound=False,
  utilization={"MXU": 0.5, "VALU": 0.25, "VLOAD": 0.1, "VSTORE": 0.2},
  spills=3,
  vmem_bytes=2048,
  hbm_bytes=10**6,
)


def row(label, direction, xla, kernel, calls, error=None):
  """Returns a row with cycles of XLA's program and of the kernel, which may be None."""
  return OpRow(
    label=label,
    direction=direction,
    calls=calls,
    matrix_cycles=100,
    memory_cycles=50,
    xla_cycles=xla,
    kernel_cycles=kernel,
    kernels=(PROFILE,) if kernel else (),
    error=error,
  )


ROWS = [
  row("conv a", "forward", 200, 100, {"F0": 2}),
  row("conv b", "forward", 800, 100, {"F7+": 2}),
  row("conv c", "forward", 10**6, 100, {"F1+": 2}),
  row("conv a", "backward", 400, None, {"F0": 2}),
  row("se_residual a", "forward", 300, 100, {"F0": 2}),
]
