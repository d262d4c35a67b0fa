"""Writes a program as ONNX, by jax2onnx, which is an extra.

jax2onnx knows no convolutions of HWNC activations, in which the network computes, and no choice by
platform. So each operation of the program is run again while it is traced: a convolution with its
images first, between two transpositions, and of each choice what the CPU would take, which has
matrix products in place of 1x1 convolutions.
"""

import importlib
import pathlib
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jaxtyping import Array

from nfnet.errors import UserError
from nfnet.export.program import Program

FILE = "network.onnx"
PACKAGES = ("jax2onnx", "onnx")
_REQUIREMENT = "jax2onnx>=0.13,<0.14"
"""It is that of the extra. With a later jax2onnx, pip would install an Orbax that is too old."""
BYTES_MAX = 2 * 10**9
"""Bytes of weights that fit the one protocol buffer which the file is, 2 GiB."""


def import_packages() -> tuple[ModuleType, ModuleType]:
  """Returns the modules jax2onnx and onnx.

  Raises:
    UserError: they are not installed.
  """
  try:
    return importlib.import_module("jax2onnx"), importlib.import_module("onnx")
  except ImportError as error:
    raise UserError(
      f"--format=onnx needs jax2onnx ({error}): pip install '{_REQUIREMENT}'"
    ) from error


def write_onnx(program: Program, folder: pathlib.Path) -> None:
  """Writes `network.onnx` into a folder.

  Raises:
    UserError: the extra is not installed, or the weights are too large.
  """
  size = sum(value.nbytes for value in program.weights.values())
  if size > BYTES_MAX:
    raise UserError(
      f"weights of {size / 1e9:.1f} GB do not fit an ONNX file, which may have 2 GiB: use "
      "--format=jax or --format=saved_model"
    )
  jax2onnx, onnx = import_packages()
  weights = {name: jnp.asarray(value) for name, value in program.weights.items()}

  def function(images: Array) -> tuple[Array, Array]:
    outputs = images_first(lambda images: program.function(weights, images), images)
    return outputs["logits"], outputs["probabilities"]

  shape = (program.pixels, program.pixels, 3)
  model = jax2onnx.to_onnx(
    function,
    [jax.ShapeDtypeStruct(("images", *shape), jnp.dtype(program.input_dtype))],
    model_name="nfnet",
    input_names=["images"],
    output_names=["logits", "probabilities"],
  )
  onnx.save(model, folder / FILE)


def images_first(function: Callable[[Array], Any], images: Array) -> Any:
  """Calls a function with convolutions of NHWC activations in place of those of HWNC ones.

  Args:
    function: function that can be traced.
    images: its argument.
  """
  program, results = jax.make_jaxpr(function, return_shape=True)(images)
  values = _run(program.jaxpr, program.consts, [images])
  return jax.tree.unflatten(jax.tree.structure(results), values)


def _run(program: core.Jaxpr, constants: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
  """Returns the results of a program, which is run operation by operation."""
  values: dict[core.Var, Any] = {}

  def read(variable):
    return variable.val if isinstance(variable, core.Literal) else values[variable]

  values.update(zip(program.constvars, constants, strict=True))
  values.update(zip(program.invars, arguments, strict=True))
  for equation in program.eqns:
    operands = [read(variable) for variable in equation.invars]
    results = _run_operation(equation.primitive, operands, equation.params)
    values.update(zip(equation.outvars, results, strict=True))
  return [read(variable) for variable in program.outvars]


def _run_operation(
  primitive: core.Primitive, operands: list[Any], options: dict[str, Any]
) -> Sequence[Any]:
  """Returns the results of one operation."""
  inner = options.get("call_jaxpr", options.get("jaxpr"))
  match primitive.name:
    case "conv_general_dilated":
      return [_convolve(*operands, options)]
    case "platform_index":
      (index,) = (i for i, names in enumerate(options["platforms"]) if names and "cpu" in names)
      return [index]
    case "cond" if isinstance(operands[0], int):
      inner = options["branches"][operands.pop(0)]
  if inner is not None:
    return _run(inner.jaxpr, inner.consts, operands)
  results = primitive.bind(*operands, **options)
  return results if primitive.multiple_results else [results]


def _convolve(x: Array, filters: Array, options: dict[str, Any]) -> Array:
  """Convolves HWNC activations as NHWC ones."""
  result = jax.lax.conv_general_dilated(
    jnp.transpose(x, (2, 0, 1, 3)),
    filters,
    window_strides=options["window_strides"],
    padding=options["padding"],
    feature_group_count=options["feature_group_count"],
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
  return jnp.transpose(result, (1, 2, 0, 3))
