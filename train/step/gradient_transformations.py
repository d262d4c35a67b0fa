"""Offers the optimizer and its clipping as `optax.GradientTransformation`s, for other loops.

`train.step.optimizer` does the arithmetic. These transformations make updates of its steps, which
costs another pass over the parameters, and keep no moving average.
"""

import math
from collections.abc import Callable
from typing import Any, get_args

import jax
import jax.numpy as jnp
import optax

import kernels
from kernels.sgd_agc.reference import clip_gradient
from nfnet.errors import check_choice, quoted
from nfnet.model import parameter_name
from train.step.argument_checks import check_alike, check_parameters, check_scalar
from train.step.optimizer import SGDAGCState, sgd_agc
from train.step.parameter_groups import ParameterRole, parameter_role

Roles = Callable[[Any], Any]
"""Function from parameters to `ParameterRole`s in the same tree."""


def nfnet_roles(parameters: Any) -> Any:
  """Returns the roles of an NFNet's parameters, by their names, on one device.

  Args:
    parameters: nested dictionaries as `nfnet.apply` takes them; equal blocks may be stacked.

  Raises:
    ValueError: a parameter is not an NFNet's, or no array of floats.
  """
  check_parameters(parameters)
  return jax.tree_util.tree_map_with_path(
    lambda path, x: parameter_role(parameter_name(path), jnp.shape(x)), parameters
  )


def uniform_roles(parameters: Any) -> Any:
  """Returns roles for any network: all parameters are clipped, and filters and matrices decay.

  Args:
    parameters: any tree of arrays with 0, 1, 2 (inputs, outputs) or 4 (HWIO) axes.

  Raises:
    ValueError: `parameters` are not a tree of arrays of floats.
  """
  check_parameters(parameters)
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
    ValueError: an argument is of another kind or outside of its bounds.
  """
  if not callable(learning_rate):
    check_scalar(
      "learning_rate", learning_rate, _is_rate, "a schedule, or a finite number of at least 0"
    )
  check_scalar("momentum", momentum, lambda x: 0 <= x < 1, "a number of at least 0 and below 1")
  check_scalar("weight_decay", weight_decay, _is_rate, "a finite number of at least 0")
  if clipping is not None:
    _check_clipping(clipping)
  check_choice("implementation", implementation, get_args(kernels.Implementation))
  _check_roles(roles)
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
    _check_update(gradients, parameters)
    if not isinstance(state, SGDAGCState):
      raise ValueError(
        f"state={quoted(state)}: must be what init or update of the optimizer returned"
      )
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
    ValueError: `clipping` is not a finite number above 0, or `roles` is not a function.
  """
  _check_clipping(clipping)
  _check_roles(roles)

  def clip(role: ParameterRole, gradient: jax.Array, parameter: jax.Array) -> jax.Array:
    if not role.clipped:
      return gradient
    # In a stack, each parameter has norms of its own.
    function = jax.vmap(clip_gradient, in_axes=(0, 0, None)) if role.stacked else clip_gradient
    return function(gradient, parameter, jnp.float32(clipping)).astype(gradient.dtype)

  def update(gradients: Any, state: Any, parameters: Any | None = None):
    _check_update(gradients, parameters)
    return jax.tree.map(clip, roles(parameters), gradients, parameters), state

  return optax.GradientTransformation(lambda parameters: optax.EmptyState(), update)


def _is_rate(number: float) -> bool:
  return 0 <= number < math.inf


def _check_clipping(clipping: float) -> None:
  check_scalar("clipping", clipping, lambda x: 0 < x < math.inf, "a finite number above 0")


def _check_roles(roles: Any) -> None:
  if not callable(roles):
    raise ValueError(
      f"roles={quoted(roles)}: must be a function of the parameters, such as uniform_roles"
    )


def _check_update(gradients: Any, parameters: Any | None) -> None:
  if parameters is None:
    raise ValueError("AGC needs the parameters: call update(gradients, state, parameters)")
  check_alike(gradients, parameters)
