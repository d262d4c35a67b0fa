"""The exponential moving average (EMA) of the parameters, which evaluation prefers.

After each step, `ema = ema + (1 - decay) * (parameters - ema)`. The optimizer's kernels compute
this in the same pass over memory as the new parameters (`updated_ema` in
`kernels.sgd_agc.formulas`); this module has the decay of a step and the initial average. The source
is paper B, appendix A.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def initial_ema(parameters: Any) -> Any:
  """Returns the moving average before the first step: a copy of the parameters.

  It has to be a copy, because the training step donates its state and a buffer can be donated only
  once.
  """
  return jax.tree.map(jnp.array, parameters)


def ramped_decay(step: Int[Array, ""], decay: float) -> Float[Array, ""]:
  """Returns min(decay, (1 + step) / (10 + step)), which lets the average forget its start.

  Args:
    step: number of updates done before this one, int32.
    decay: limit for large steps, an experiment's `optimizer.ema_decay`.
  """
  step = step.astype(jnp.float32)
  return jnp.minimum(decay, (1 + step) / (10 + step))
