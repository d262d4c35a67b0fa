"""The public op: a step of SGD with AGC of several parameters."""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels.dispatch import Implementation, dispatch
from kernels.sgd_agc import kernel_tpu, reference, small_tpu

Arrays = Mapping[str, Float[Array, "..."]]
"""By the name of the parameter."""


class Step(NamedTuple):
  """What one step makes of parameters, all float32.

  Attributes:
    parameters: the new ones.
    momentum_buffers: the new ones.
    averages: the new ones, or None.
    gradient_square_sum: of all gradients before they were clipped, a scalar. AGC computes it
      anyway, and the norm of all gradients together is worth watching.
  """

  parameters: Arrays
  momentum_buffers: Arrays
  averages: Arrays | None
  gradient_square_sum: Float[Array, ""]


def sgd_agc(
  parameters: Arrays,
  gradients: Arrays,
  momentum_buffers: Arrays,
  averages: Arrays | None = None,
  *,
  learning_rate: Float[Array, ""],
  momentum: Float[Array, ""],
  weight_decay: Float[Array, ""],
  clipping: Float[Array, ""] | None,
  average_decay: Float[Array, ""] | None = None,
  stacked: bool = False,
  implementation: Implementation = "reference",
) -> Step:
  """`reference.sgd_agc` of each parameter, by TPU kernels where they cover it.

  Small parameters share a kernel, so the more of them in a call, the better.

  Args:
    parameters: float32.
    gradients: of the parameters, already averaged over all examples of the global batch; float32
      or bfloat16.
    momentum_buffers: float32, zeros at first.
    averages: of the parameters over steps, float32, or None.
    learning_rate: of this step.
    momentum: of all.
    weight_decay: of all.
    clipping: of all; None does not clip.
    average_decay: of all; None without averages.
    stacked: the first axis of each counts parameters, which have their own norms.
    implementation: of the op.

  Raises:
    ValueError: there are averages without their decay, or the other way round.
  """
  if (averages is None) != (average_decay is None):
    raise ValueError(f"{average_decay=}: an average has a decay, and nothing else has")
  small = [name for name, x in parameters.items() if small_tpu.is_small(x.shape, stacked)]
  # Large parameters keep HBM busy one by one.
  large = [name for name in parameters if name not in small]
  batches = [([name], _of_each(kernel_tpu.sgd_agc, stacked)) for name in large]
  if small:
    batches.append((small, functools.partial(small_tpu.sgd_agc, stacked=stacked)))
  kinds = (parameters, gradients, momentum_buffers, averages)
  steps = [
    Step(
      *dispatch(
        "sgd_agc",
        implementation,
        reference=_of_each(reference.sgd_agc, stacked),
        kernel=functools.partial(
          kernel,
          parameter_norm_floor=reference.PARAMETER_NORM_FLOOR,
          gradient_norm_floor=reference.GRADIENT_NORM_FLOOR,
        ),
        arguments=(
          *(None if kind is None else {name: kind[name] for name in names} for kind in kinds),
          learning_rate,
          momentum,
          weight_decay,
          clipping,
          average_decay,
        ),
      )
    )
    for names, kernel in batches
  ]

  def union(kind):
    return {name: x for step in steps for name, x in getattr(step, kind).items()}

  return Step(
    union("parameters"),
    union("momentum_buffers"),
    None if averages is None else union("averages"),
    sum(step.gradient_square_sum for step in steps),
  )


def _of_each(function, stacked: bool):
  """The function of one parameter for several, with the same hyper-parameters for all."""

  def of_all(parameters, gradients, momentum_buffers, averages, *hyper_parameters, **floors):
    def of_one(parameter, gradient, momentum_buffer, average):
      return function(parameter, gradient, momentum_buffer, average, *hyper_parameters, **floors)

    steps = {
      name: (jax.vmap(of_one) if stacked else of_one)(
        parameters[name],
        gradients[name],
        momentum_buffers[name],
        None if averages is None else averages[name],
      )
      for name in parameters
    }
    new_parameters, new_buffers, new_averages = (
      {name: step[i] for name, step in steps.items()} for i in range(3)
    )
    square_sum = sum(jnp.sum(step[3]) for step in steps.values())
    return new_parameters, new_buffers, None if averages is None else new_averages, square_sum

  return of_all
