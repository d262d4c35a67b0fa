"""Implements normalizer-free networks: structure, initial values, cost, weights, prediction.

May import `kernels`; imports nothing of `train` or `profiling`.

The names in `__all__` are what other programs use (docs/from_python.md). They are imported when
they are first used, so that the import of the package, which every command begins with, is quick.
"""

import importlib
from typing import Any

from nfnet.system.interrupts import end_in_one_line_while_importing

end_in_one_line_while_importing()

_MODULES = {
  "NFNet": "nfnet.model",
  "apply": "nfnet.model",
  "bind": "nfnet.model",
  "pooled_features": "nfnet.model",
  "stage_features": "nfnet.model",
  "initial_parameters": "nfnet.initialization",
  "load": "nfnet.weights.load",
  "Classifier": "nfnet.inference",
  "load_classifier": "nfnet.inference",
  "preprocess": "nfnet.images.preprocessing",
  "normalize": "nfnet.images.normalization",
  "VARIANTS": "nfnet.variants",
  "UserError": "nfnet.errors",
}
"""Modules that define the public names, `__version__` aside."""

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
  """Imports a public name, or finds out `__version__`, when it is first used."""
  if name == "__version__":
    return _installed_version()
  if name not in _MODULES:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__, "__version__"})


def _installed_version() -> str:
  """Returns the installed version, or "unknown" where nothing is installed."""
  # This import would slow down each data worker's start.
  import importlib.metadata

  try:
    return importlib.metadata.version("nfnets-at-scale")
  except importlib.metadata.PackageNotFoundError:
    return "unknown"
