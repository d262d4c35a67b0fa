"""Writes a program as a SavedModel of TensorFlow, by Orbax's exporter; both are an extra.

Its signature `serving_default` takes `images` and returns `logits` and `probabilities`. The program
inside is StableHLO, which TensorFlow compiles by XLA, and the weights are variables in files of
their own, so that there is no limit to their size.
"""

import importlib
import pathlib
import re
from types import ModuleType

import jax
import jax.numpy as jnp

from nfnet.errors import UserError
from nfnet.export.program import Program

FOLDER = "saved_model"
PACKAGES = ("orbax-export", "tensorflow", "tensorflow-cpu")
_PLATFORMS = ("cpu", "cuda", "tpu")


def import_packages() -> tuple[ModuleType, ModuleType]:
  """Returns the modules tensorflow and orbax.export.

  Raises:
    UserError: they are not installed.
  """
  try:
    return importlib.import_module("tensorflow"), importlib.import_module("orbax.export")
  except ImportError as error:
    raise UserError(
      f"--format=saved_model needs orbax-export and TensorFlow ({error}): "
      "pip install orbax-export tensorflow"
    ) from error


def write_saved_model(program: Program, folder: pathlib.Path) -> None:
  """Writes `saved_model/` into a folder.

  Raises:
    UserError: the extra is not installed, or the activation is the exact gelu.
  """
  traced = jax.make_jaxpr(program.function)(program.weights, program.images(1))
  # It would be written, and fail when it is served: "unregistered operation 'vhlo.composite_v2'".
  if re.search(r"\berfc?\b", str(traced)):
    raise UserError(
      "TensorFlow, as of 2.21, cannot read the exact gelu (gelu_erf, or numerics timm) as JAX "
      "writes it: use --format=jax or --format=onnx"
    )
  tensorflow, orbax = import_packages()
  module = orbax.JaxModule(
    {name: jnp.asarray(value) for name, value in program.weights.items()},
    program.function,
    trainable=False,
    input_polymorphic_shape="images, ...",
    jax2tf_kwargs={"native_serialization_platforms": _PLATFORMS},
  )
  shape = (None, program.pixels, program.pixels, 3)
  signature = tensorflow.TensorSpec(shape, program.input_dtype, name="images")
  configuration = orbax.ServingConfig("serving_default", input_signature=[signature])
  orbax.ExportManager(module, [configuration]).save(str(folder / FOLDER))
