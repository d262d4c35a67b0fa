"""The public op: one step of SGD with AGC for several parameters."""

import functools

from jaxtyping import Array, Float

from kernels.arguments import check_arrays, check_options, check_same_shapes, given
from kernels.dispatch import Implementation, dispatch
from kernels.sgd_agc import pallas, reference
from kernels.sgd_agc.formulas import Arrays, Step


def sgd_agc_step(
  parameters: Arrays,
  gradients: Arrays,
  momentum_buffers: Arrays,
  emas: Arrays | None = None,
  *,
  learning_rate: Float[Array, ""],
  momentum: Float[Array, ""],
  weight_decay: Float[Array, ""],
  clipping: Float[Array, ""] | None,
  ema_decay: Float[Array, ""] | None = None,
  stacked: bool = False,
  implementation: Implementation = "reference",
) -> Step:
  """Clips gradients, adds weight decay, and takes one step of SGD with Nesterov momentum.

  This is `reference.sgd_agc_step`, which has the equations, with TPU kernels where they cover a
  parameter. Small parameters share a kernel, so it is best to pass all of them in one call.

  Parameters are filters [height, width, inputs, outputs], matrices [inputs, outputs], vectors or
  scalars, with one more axis in front if `stacked`. Gradients, momentum buffers and moving averages
  have the names and shapes of their parameters. Hyper-parameters are float32 scalars.

  Args:
    parameters: parameters by name, float32.
    gradients: averages over all examples of the global batch, float32 or bfloat16.
    momentum_buffers: momentum buffers, float32, initially zero.
    emas: moving averages of the parameters over steps, float32, or None.
    learning_rate: learning rate of this step.
    momentum: factor of the momentum buffers.
    weight_decay: L2 coefficient of all parameters in the call.
    clipping: AGC's lambda for all parameters in the call; None disables clipping.
    ema_decay: decay of the moving averages; None if there are none.
    stacked: whether the first axis of each array counts parameters, which have their own norms.
    implementation: "reference" or "pallas".

  Returns:
    New parameters, momentum buffers and moving averages, and the sum of the squared gradients
    before clipping, all float32.

  Raises:
    ValueError: an argument is of another kind, arrays differ in names or shapes, or one of `emas`
      and `ema_decay` is None and the other is not.
  """
  if (emas is None) != (ema_decay is None):
    which = "emas are given without an ema_decay" if ema_decay is None else "ema_decay without emas"
    raise ValueError(f"{which}: moving averages need a decay, and nothing else takes one")
  check_same_shapes(
    {
      "parameters": parameters,
      "gradients": gradients,
      "momentum_buffers": momentum_buffers,
      **({} if emas is None else {"emas": emas}),
    }
  )
  check_arrays(
    learning_rate=(learning_rate, ""),
    momentum=(momentum, ""),
    weight_decay=(weight_decay, ""),
    **given(clipping=(clipping, ""), ema_decay=(ema_decay, "")),
  )
  check_options(stacked=stacked, implementation=implementation)
  steps = [
    dispatch(
      "sgd_agc",
      implementation,
      reference=functools.partial(reference.sgd_agc_step, stacked=stacked),
      kernel=functools.partial(pallas.sgd_agc_step, stacked=stacked),
      arguments=(
        *(
          None if tree is None else {name: tree[name] for name in names}
          for tree in (parameters, gradients, momentum_buffers, emas)
        ),
        learning_rate,
        momentum,
        weight_decay,
        clipping,
        ema_decay,
      ),
    )
    for names in pallas.batches(parameters, stacked)
  ]

  def union(field):
    return {name: x for step in steps for name, x in getattr(step, field).items()}

  return Step(
    union("parameters"),
    union("momentum_buffers"),
    None if emas is None else union("emas"),
    sum(step.gradient_square_sum for step in steps),
  )
