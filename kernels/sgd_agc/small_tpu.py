"""One step of SGD with AGC for many small parameters as one Pallas TPU kernel.

These are gains, biases, skip gains and the stem's first filters. A network has thousands of them,
and launching a kernel for each would take longer than the work. One call holds as many whole
parameters as fit into VMEM.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from kernels.call import Operand, Result, call
from kernels.layout import SUBLANES
from kernels.sgd_agc.formulas import HyperParameters, clip_scale, nesterov_step, updated_ema
from kernels.tpu import result_like

Whole = tuple[Float[Array, "..."], ...]
"""One array for each parameter."""


class Refs(NamedTuple):
  """The refs of the kernel: whole arrays of each parameter; moving averages' may be None."""

  hyper_parameters_ref: Any  # [5], as `HyperParameters`, in SMEM
  parameter_refs: tuple[Any, ...]
  gradient_refs: tuple[Any, ...]
  momentum_buffer_refs: tuple[Any, ...]
  ema_refs: tuple[Any, ...] | None
  new_parameter_refs: tuple[Any, ...]
  new_momentum_buffer_refs: tuple[Any, ...]
  new_ema_refs: tuple[Any, ...] | None
  gradient_square_sum_ref: Any  # [1], in SMEM


def update_small(
  hyper_parameters: Float[Array, "5"],
  parameters: Whole,
  gradients: Whole,
  momentum_buffers: Whole,
  emas: Whole | None,
  *,
  stacks: tuple[bool, ...],
  clips: bool,
) -> tuple[Whole, Whole, Whole | None, Float[Array, "1"]]:
  """Returns the new parameters, momentum buffers and moving averages, in place, and a square sum.

  Args:
    hyper_parameters: `HyperParameters` in their order.
    parameters: float32 vectors, matrices (IO), filters (HWIO), and stacks of vectors.
    gradients: float32.
    momentum_buffers: float32.
    emas: float32, or None.
    stacks: whether each parameter is a stack, whose entries along the first axis are units.
    clips: whether gradients are clipped.

  Returns:
    The new parameters, momentum buffers and moving averages, and the sum of the squares of all
    gradients before clipping.
  """
  in_vmem, in_smem = (pl.BlockSpec(memory_space=space) for space in (pltpu.VMEM, pltpu.SMEM))

  def result(shape, spec, in_place_of=None):
    return Result(result_like(gradients[0], shape, jnp.float32), spec, in_place_of)

  def operands(arrays):
    return tuple(Operand(array, in_vmem) for array in arrays)

  def new(operands):
    return tuple(result(operand.array.shape, in_vmem, operand) for operand in operands)

  old_parameters, old_buffers = operands(parameters), operands(momentum_buffers)
  old_emas = None if emas is None else operands(emas)
  written = call(
    functools.partial(_body, stacks=stacks, clips=clips),
    Refs(
      hyper_parameters_ref=Operand(hyper_parameters, in_smem),
      parameter_refs=old_parameters,
      gradient_refs=operands(gradients),
      momentum_buffer_refs=old_buffers,
      ema_refs=old_emas,
      new_parameter_refs=new(old_parameters),
      new_momentum_buffer_refs=new(old_buffers),
      new_ema_refs=None if old_emas is None else new(old_emas),
      gradient_square_sum_ref=result((1,), in_smem),
    ),
    name="sgd_agc_small",
    has_cost_estimate=False,
  )
  return (
    written.new_parameter_refs,
    written.new_momentum_buffer_refs,
    written.new_ema_refs,
    written.gradient_square_sum_ref,
  )


def _body(refs: Refs, *, stacks: tuple[bool, ...], clips: bool):
  hyper = HyperParameters(*(refs.hyper_parameters_ref[i] for i in range(5)))
  square_sum = 0.0
  for i, stacked in enumerate(stacks):
    for at in _chunks(refs.parameter_refs[i].shape, stacked):
      parameter, gradient = refs.parameter_refs[i][at], refs.gradient_refs[i][at]
      square_sum += jnp.sum(gradient * gradient)
      if clips:
        norms = _unit_norm(parameter, stacked), _unit_norm(gradient, stacked)
        gradient = gradient * clip_scale(*norms, hyper.clipping)
      parameter, buffer = nesterov_step(
        parameter,
        gradient,
        refs.momentum_buffer_refs[i][at],
        hyper.learning_rate,
        hyper.momentum,
        hyper.weight_decay,
      )
      refs.new_parameter_refs[i][at] = parameter
      refs.new_momentum_buffer_refs[i][at] = buffer
      if refs.ema_refs is not None:
        refs.new_ema_refs[i][at] = updated_ema(refs.ema_refs[i][at], parameter, hyper.ema_rate)
  refs.gradient_square_sum_ref[0] = square_sum


def _unit_norm(x: Float[Array, "..."], stacked: bool) -> Float[Array, "..."]:
  """Returns each unit's norm, taken over all axes but those of the stack and of the outputs."""
  has_outputs = x.ndim - stacked > 1
  axes = tuple(range(stacked, x.ndim - has_outputs))
  return jnp.sqrt(jnp.sum(x * x, axis=axes, keepdims=True)) if axes else jnp.abs(x)


def _chunks(shape: tuple[int, ...], stacked: bool) -> Iterator[slice]:
  """Divides the first axis of a stack into slices as long as the sublanes; leaves others whole."""
  step = SUBLANES if stacked and len(shape) > 1 else shape[0]
  for i in range(0, shape[0], step):
    yield slice(i, min(i + step, shape[0]))
