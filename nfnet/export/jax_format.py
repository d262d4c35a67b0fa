"""Writes a program as `jax.export` serializes it, with its weights in a safetensors file beside it.

The program is StableHLO in JAX's container. It has been lowered for every platform of `PLATFORMS`,
with a symbolic number of images, and is called as `jax.export.deserialize(...).call(weights,
images)`. JAX alone, and what it serializes with, reads it.
"""

import pathlib

import jax
from jax import export

from nfnet.errors import UserError
from nfnet.export.program import Program
from nfnet.weights.safetensors_file import write_safetensors

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
"""Platforms of the one file; three more than the CPU's own add 15 % to it."""
PACKAGES = ("safetensors", "flatbuffers")
PROGRAM_FILE = "program.jax"
WEIGHTS_FILE = "weights.safetensors"


def import_packages() -> None:
  """Imports what the format is written with.

  Raises:
    UserError: it is not installed.
  """
  try:
    # `jax.export` writes with it, and JAX does not require it.
    import flatbuffers  # noqa: F401
  except ImportError as error:
    raise UserError(
      "flatbuffers, with which JAX writes programs, is not installed: pip install flatbuffers"
    ) from error


def write_jax(program: Program, folder: pathlib.Path) -> None:
  """Writes both files into a folder.

  Raises:
    UserError: flatbuffers is not installed, or the weights cannot be written.
  """
  import_packages()
  (count,) = export.symbolic_shape("images")
  exported = export.export(jax.jit(program.function), platforms=PLATFORMS)(
    program.weights, program.images(count)
  )
  (folder / PROGRAM_FILE).write_bytes(exported.serialize())
  write_safetensors(folder / WEIGHTS_FILE, program.weights)
