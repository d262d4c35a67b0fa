"""Implements normalizer-free networks: structure, initial values, cost, weights, prediction.

May import `kernels`; imports nothing of `train` or `profiling`.
"""

from nfnet.system.interrupts import end_in_one_line_while_importing

end_in_one_line_while_importing()


def __getattr__(name: str) -> str:
  """Returns `__version__`, the installed version, or "unknown" where nothing is installed.

  It is not read before it is asked for, because that would slow down each data worker's start.
  """
  if name != "__version__":
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  import importlib.metadata

  try:
    return importlib.metadata.version("nfnets-at-scale")
  except importlib.metadata.PackageNotFoundError:
    return "unknown"
