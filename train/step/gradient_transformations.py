"""Offers the optimizer and its clipping as `optax.GradientTransformation`s, for other loops.

`train.step.optimizer` does the arithmetic. These transformations make updates of its steps, which
costs another pass over the parameters, and keep no moving average.
"""

from collections.abc import Callable
from typing import Any, get_args

import jax
import jax.numpy as jnp
import optax

import kernels
from kernels.sgd_agc.reference import clip_gradient
from nfnet.model import parameter_name
from train.step.optimizer import sgd_agc
from train.step.parameter_groups import ParameterRole, parameter_role

Roles = Callable[[Any], Any]
"""Function from parameters to `ParameterRole`s in the same tree."""


def nfnet_roles(parameters: Any) -> Any:
  """Returns the roles of an NFNet's parameters, by their names, on one device.

  Args:
    parameters: nested dictionaries as `nfnet.apply` takes them; equal blocks may be stacked.

  Raises:
    ValueError: a parameter is not an NFNet's.
  """
  return jax.tree_util.tree_map_with_path(
    lambda path, x: parameter_role(parameter_name(path), jnp.shape(x)), parameters
  )


def uniform_roles(parameters: Any) -> Any:
  """Returns roles for any network: all parameters are clipped, and filters and matrices decay.

  Args:
    parameters: any tree of arrays with 0, 1, 2 (inputs, outputs) or 4 (HWIO) axes.
  """
  return jax.tree.map(
    lambda x: ParameterRole(
      clipped=True,
      decayed=jnp.ndim(x) > 1,
      stacked=False,
      sharded_axis=None,
      has_gradient_kernel=False,
    ),
    parameters,
  )


def nesterov_sgd_with_agc(
  learning_rate: float | optax.Schedule,
  *,
  momentum: float = 0.9,
  weight_decay: float = 2e-5,
  clipping: float | None = 0.01,
  roles: Roles = nfnet_roles,
  implementation: kernels.Implementation = "reference",
) -> optax.GradientTransformation:
  """Returns the optimizer of paper B: AGC, then L2 decay, then Nesterov momentum.

  The defaults are paper B's. `optax.apply_updates` gives the parameters that
  `train.step.optimizer` computes, up to the rounding of one addition.

  Args:
    learning_rate: learning rate, or function of the number of updates done before.
    momentum: coefficient of Nesterov momentum.
    weight_decay: coefficient of L2 decay, added after clipping to parameters that decay.
    clipping: AGC's lambda, the largest ratio of gradient norm to parameter norm; None clips
      nothing.
    roles: function that says which parameters are clipped and decay; `uniform_roles` suits any
      network.
    implementation: implementation of the op, "reference" or "pallas".

  Raises:
    ValueError: a number is outside of its bounds.
  """
  if not 0 <= momentum < 1:
    raise ValueError(f"momentum={momentum!r}: must be at least 0 and below 1")
  if not weight_decay >= 0:
    raise ValueError(f"weight_decay={weight_decay!r}: must be at least 0")
  if clipping is not None:
    _check_clipping(clipping)
  if implementation not in get_args(kernels.Implementation):
    raise ValueError(f"implementation={implementation!r}: must be 'reference' or 'pallas'")
  schedule = learning_rate if callable(learning_rate) else optax.constant_schedule(learning_rate)

  def optimizer(parameters: Any):
    return sgd_agc(
      schedule,
      roles(parameters),
      momentum=momentum,
      weight_decay=weight_decay,
      clipping=clipping,
      implementation=implementation,
    )

  def update(gradients: Any, state: Any, parameters: Any | None = None):
    parameters = _given(parameters)
    step = optimizer(parameters).step(gradients, state, parameters, None)
    return jax.tree.map(jnp.subtract, step.parameters, parameters), step.state

  return optax.GradientTransformation(
    lambda parameters: optimizer(parameters).init(parameters), update
  )


def adaptive_gradient_clipping(
  clipping: float, *, roles: Roles = nfnet_roles
) -> optax.GradientTransformation:
  """Returns AGC alone (paper B, section 4, equation 3), to be chained before any optimizer.

  Args:
    clipping: AGC's lambda, the largest ratio of gradient norm to parameter norm.
    roles: function that says which parameters are clipped; `uniform_roles` suits any network.

  Raises:
    ValueError: `clipping` is not above 0.
  """
  _check_clipping(clipping)

  def clip(role: ParameterRole, gradient: jax.Array, parameter: jax.Array) -> jax.Array:
    if not role.clipped:
      return gradient
    # In a stack, each parameter has norms of its own.
    function = jax.vmap(clip_gradient, in_axes=(0, 0, None)) if role.stacked else clip_gradient
    return function(gradient, parameter, jnp.float32(clipping)).astype(gradient.dtype)

  def update(gradients: Any, state: Any, parameters: Any | None = None):
    parameters = _given(parameters)
    return jax.tree.map(clip, roles(parameters), gradients, parameters), state

  return optax.GradientTransformation(lambda parameters: optax.EmptyState(), update)


def _check_clipping(clipping: float) -> None:
  if not clipping > 0:
    raise ValueError(f"clipping={clipping!r}: must be above 0")


def _given(parameters: Any | None) -> Any:
  if parameters is None:
    raise ValueError("AGC needs the parameters: call update(gradients, state, parameters)")
  return parameters
