"""Keeps JAX from looking for a TPU where there is none.

The TPU compiler (extra `tpu`) is of use without a TPU, to compile ahead of time; but with it
installed, JAX starts it as a device too, and it prints errors at every start.
"""

import importlib.util
import os
import pathlib
import sys

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
