"""Writes a program as `jax.export` serializes it, with its weights in a safetensors file beside it.

The program is StableHLO in JAX's container. It has been lowered for every platform of `PLATFORMS`,
with a symbolic number of images, and is called as `jax.export.deserialize(...).call(weights,
images)`. JAX alone, and what it serializes with, reads it.
"""

import pathlib

import jax
import safetensors
import safetensors.numpy
from jax import export

from nfnet.errors import UserError
from nfnet.export.program import Program

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
"""Platforms of the one file; three more than the CPU's own add 15 % to it."""
PACKAGES = ("safetensors", "flatbuffers")
PROGRAM_FILE = "program.jax"
WEIGHTS_FILE = "weights.safetensors"


def write_jax(program: Program, folder: pathlib.Path) -> None:
  """Writes both files into a folder.

  Raises:
    UserError: flatbuffers is not installed, or the weights cannot be written.
  """
  try:
    # `jax.export` writes with it, and JAX does not require it.
    import flatbuffers  # noqa: F401
  except ImportError as error:
    raise UserError(
      "flatbuffers, with which JAX writes programs, is not installed: pip install flatbuffers"
    ) from error
  (count,) = export.symbolic_shape("images")
  exported = export.export(jax.jit(program.function), platforms=PLATFORMS)(
    program.weights, program.images(count)
  )
  (folder / PROGRAM_FILE).write_bytes(exported.serialize())
  try:
    safetensors.numpy.save_file(program.weights, folder / WEIGHTS_FILE)
  except safetensors.SafetensorError as error:
    raise UserError(f"the weights cannot be written: {error}") from error
  # safetensors lets nobody else read its files.
  (folder / WEIGHTS_FILE).chmod((folder / PROGRAM_FILE).stat().st_mode)
