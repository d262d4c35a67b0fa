"""The public op: a step of SGD with AGC of several parameters."""

import functools

from jaxtyping import Array, Float

from kernels.dispatch import Implementation, dispatch
from kernels.sgd_agc import pallas, reference
from kernels.sgd_agc.formulas import Arrays, Step
from kernels.sgd_agc.problem import is_small


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
  """Computes `reference.sgd_agc_step`, by TPU kernels where they cover a parameter.

  Small parameters share a kernel, so it is best to give all of them in one call.

  Args:
    parameters: float32, by name.
    gradients: averages over all examples of the global batch; float32 or bfloat16.
    momentum_buffers: float32, zeros at first.
    emas: moving averages of the parameters over steps, float32, or None.
    learning_rate: of this step.
    momentum: factor of the momentum buffers.
    weight_decay: L2, for all parameters of the call.
    clipping: AGC's lambda, for all parameters of the call; None does not clip.
    ema_decay: decay of the moving averages; None without them.
    stacked: whether the first axis of each array counts parameters, which have their own norms.
    implementation: what computes it.

  Raises:
    ValueError: one of `emas` and `ema_decay` is None and the other is not.
  """
  if (emas is None) != (ema_decay is None):
    raise ValueError(f"{ema_decay=}: moving averages need a decay, and nothing else takes one")
  small = [name for name, x in parameters.items() if is_small(x.shape, stacked)]
  # A large parameter keeps HBM busy on its own.
  batches = [[name] for name in parameters if name not in small]
  if small:
    batches.append(small)
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
    for names in batches
  ]

  def union(field):
    return {name: x for step in steps for name, x in getattr(step, field).items()}

  return Step(
    union("parameters"),
    union("momentum_buffers"),
    None if emas is None else union("emas"),
    sum(step.gradient_square_sum for step in steps),
  )
