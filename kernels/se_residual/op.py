"""The public ops: a branch's last convolution, squeeze-excite and the residual addition.

They are one op, or two: the second one, which may be the next block's first convolution, adds up.
"""

import functools
from typing import Any

import jax
from jaxtyping import Array, Float

from kernels.arguments import check_arrays, check_options, check_type, given
from kernels.dispatch import Implementation, dispatch
from kernels.mesh_axes import vary_alike
from kernels.scaled_ws_conv.filters import StandardizedFilters, filter_shape
from kernels.scaled_ws_conv.formulas import Activation, PendingSum, Standardization
from kernels.scaled_ws_conv.op import Convolution, check_filters, standardized_convolution
from kernels.se_residual import pallas, reference
from kernels.se_residual.formulas import Gate


def conv_se_residual(
  x: Float[Array, "h w n i"],
  weight: Float[Array, "kh kw i c"],
  gain: Float[Array, " c"],
  bias: Float[Array, " c"],
  shortcut: Float[Array, "h w n c"],
  gate: Gate,
  skip_gain: Float[Array, ""],
  input_scale: Float[Array, ""] | None = None,
  keep: Float[Array, " n"] | None = None,
  *,
  activation: Activation | None = None,
  alpha: float = 0.2,
  standardization: Standardization = "released",
  implementation: Implementation = "reference",
) -> Float[Array, "h w n c"]:
  """Returns shortcut + alpha * skip_gain * keep * gate * branch, with branch = conv(activation(x)).

  This is `reference.conv_se_residual`, with TPU kernels where they cover the arguments. The gate is
  computed from the branch's mean over space.

  Args:
    x: input of the branch's last convolution, [height, width, images, input channels], in the
      compute dtype.
    weight: filters, [kernel height, kernel width, input channels, channels], float32.
    gain: scale of each filter, [channels], float32.
    bias: offset of each channel, [channels], float32.
    shortcut: [height, width, images, channels], in the dtype of `x`.
    gate: weights of squeeze-excite (`Gate`).
    skip_gain: learned scale of the branch, a float32 scalar.
    input_scale: factor of the activated input, a float32 scalar without a derivative; None is 1.
    keep: mask of stochastic depth, [images], 0 or 1; None keeps all.
    activation: activation of `x`, or None.
    alpha: weight of the branch, 0.2 in the papers.
    standardization: formula of weight standardization (`scaled_ws_conv.formulas.Standardization`).
    implementation: "reference" or "pallas".

  Returns:
    The sum, of the shape and dtype of `shortcut`.

  Raises:
    ValueError: an argument is of another kind, or arrays do not fit together.
  """
  _check_branch(
    x,
    (bias, shortcut, gate, skip_gain, keep),
    weight=(weight, "_ _ input_channels channels"),
    gain=(gain, "channels"),
    **given(input_scale=(input_scale, "")),
  )
  static = dict(activation=activation, alpha=alpha, standardization=standardization)
  check_options(**static, implementation=implementation)
  if input_scale is not None:
    input_scale = jax.lax.stop_gradient(input_scale)
  return dispatch(
    "conv_se_residual",
    implementation,
    reference=functools.partial(reference.conv_se_residual, **static),
    kernel=functools.partial(pallas.conv_se_residual, **static),
    arguments=vary_alike(x, weight, gain, bias, shortcut, gate, skip_gain, input_scale, keep),
  )


def standardized_conv_se_residual(
  x: Float[Array, "h w n i"],
  filters: StandardizedFilters,
  bias: Float[Array, " c"],
  shortcut: Float[Array, "h w n c"],
  gate: Gate,
  skip_gain: Float[Array, ""],
  keep: Float[Array, " n"] | None = None,
  *,
  activation: Activation | None = None,
  alpha: float = 0.2,
  implementation: Implementation = "reference",
) -> Float[Array, "h w n c"]:
  """Computes `conv_se_residual` from standardized filters.

  Args:
    x: see `conv_se_residual`.
    filters: filters from `kernels.standardize_filters`, in the dtype of `x`; their gradient is that
      of their `gradient_sink`.
    bias: see `conv_se_residual`, as for all further arguments.
    shortcut: [height, width, images, channels], in the dtype of `x`.
    gate: weights of squeeze-excite (`Gate`).
    skip_gain: learned scale of the branch, a float32 scalar.
    keep: mask of stochastic depth, [images], 0 or 1; None keeps all.
    activation: activation of `x`, or None.
    alpha: weight of the branch, 0.2 in the papers.
    implementation: "reference" or "pallas".

  Returns:
    The sum, of the shape and dtype of `shortcut`.

  Raises:
    ValueError: an argument is of another kind, or arrays do not fit together.
  """
  static = dict(activation=activation, alpha=alpha)
  _check_standardized_branch(
    x, filters, (bias, shortcut, gate, skip_gain, keep), **static, implementation=implementation
  )
  return dispatch(
    "standardized_conv_se_residual",
    implementation,
    reference=functools.partial(reference.standardized_conv_se_residual, **static),
    kernel=functools.partial(pallas.standardized_conv_se_residual, **static),
    arguments=vary_alike(x, filters, bias, shortcut, gate, skip_gain, keep),
  )


def standardized_conv_se(
  x: Float[Array, "h w n i"],
  filters: StandardizedFilters,
  bias: Float[Array, " c"],
  shortcut: Float[Array, "h w n c"],
  gate: Gate,
  skip_gain: Float[Array, ""],
  keep: Float[Array, " n"] | None = None,
  *,
  activation: Activation | None = None,
  alpha: float = 0.2,
  implementation: Implementation = "reference",
) -> PendingSum:
  """Computes `standardized_conv_se_residual` but for the addition.

  Args:
    x: see `standardized_conv_se_residual`, as for all further arguments.
    filters: filters from `kernels.standardize_filters`, in the dtype of `x`.
    bias: offset of each channel, [channels], float32.
    shortcut: [height, width, images, channels], in the dtype of `x`.
    gate: weights of squeeze-excite (`Gate`).
    skip_gain: learned scale of the branch, a float32 scalar.
    keep: mask of stochastic depth, [images], 0 or 1; None keeps all.
    activation: activation of `x`, or None.
    alpha: weight of the branch, 0.2 in the papers.
    implementation: "reference" or "pallas".

  Returns:
    The sum, for `add_up` or `standardized_convolution_of_sum`, and for nothing else: its
    derivatives are an agreement with these (`PendingSum`).

  Raises:
    ValueError: an argument is of another kind, or arrays do not fit together.
  """
  static = dict(activation=activation, alpha=alpha)
  _check_standardized_branch(
    x, filters, (bias, shortcut, gate, skip_gain, keep), **static, implementation=implementation
  )
  branch, scale, sums_sink = dispatch(
    "standardized_conv_se",
    implementation,
    reference=functools.partial(reference.standardized_conv_se, **static),
    kernel=functools.partial(pallas.standardized_conv_se, **static),
    arguments=vary_alike(x, filters, bias, gate, skip_gain, keep),
  )
  return PendingSum(branch, shortcut, scale, sums_sink)


def add_up(
  pending: PendingSum, *, implementation: Implementation = "reference"
) -> Float[Array, "h w n c"]:
  """Returns the sum shortcut + scale * branch.

  Args:
    pending: what `standardized_conv_se` has returned.
    implementation: "reference" or "pallas".

  Raises:
    ValueError: an argument is of another kind.
  """
  _check_pending(pending)
  check_options(implementation=implementation)
  return dispatch(
    "add_up",
    implementation,
    reference=reference.add_up,
    kernel=pallas.add_up,
    arguments=vary_alike(pending),
  )


def standardized_convolution_of_sum(
  pending: PendingSum,
  filters: StandardizedFilters,
  bias: Float[Array, " o"],
  *,
  activation: Activation | None = None,
  returns_input: bool = False,
  implementation: Implementation = "reference",
) -> Convolution:
  """Computes a plain 1x1 `kernels.standardized_convolution` of a sum.

  A kernel hides the addition behind the matrix products, and in the backward pass the sums over
  space that squeeze-excite needs.

  Args:
    pending: what `standardized_conv_se` has returned, of [height, width, images, channels].
    filters: filters from `kernels.standardize_filters`, in the dtype of the branch.
    bias: offset of each output channel, [output channels], float32.
    activation: activation of the sum, or None.
    returns_input: whether the sum is returned too.
    implementation: "reference" or "pallas".

  Returns:
    The result, [height, width, images, output channels], and the sum if requested.

  Raises:
    ValueError: an argument is of another kind, or filters, sum and bias do not fit together.
  """
  _check_pending(pending)
  check_filters(filters)
  check_arrays(bias=(bias, "output_channels"))
  static = dict(activation=activation, returns_input=returns_input)
  check_options(**static, implementation=implementation)
  filter_shape(filters, pending.branch, bias, groups=1)
  return Convolution(
    *dispatch(
      "standardized_convolution_of_sum",
      implementation,
      reference=functools.partial(reference.standardized_convolution_of_sum, **static),
      kernel=functools.partial(_convolution_of_sum_by_kernels, **static),
      arguments=vary_alike(pending, filters, bias),
    )
  )


def _check_branch(x: Any, others: tuple[Any, ...], **further: tuple[Any, str]) -> None:
  """Checks what the ops that make a branch have in common.

  Args:
    x: input of the branch's last convolution.
    others: bias, shortcut, gate, skip gain and mask.
    **further: arrays as for `check_arrays`.
  """
  bias, shortcut, gate, skip_gain, keep = others
  check_type("gate", gate, Gate, "with the weights of squeeze-excite")
  axes = ("channels squeezed", "squeezed", "squeezed channels", "channels")
  check_arrays(
    x=(x, "height width images input_channels"),
    shortcut=(shortcut, "height width images channels"),
    bias=(bias, "channels"),
    **{
      f"gate.{name}": (array, of_array)
      for name, array, of_array in zip(Gate._fields, gate, axes, strict=True)
    },
    skip_gain=(skip_gain, ""),
    **given(keep=(keep, "images")),
    **further,
  )


def _check_standardized_branch(
  x: Any, filters: Any, others: tuple[Any, ...], **options: Any
) -> None:
  """Checks what `_check_branch` does, the filters of its last convolution, and options."""
  _check_branch(x, others)
  check_filters(filters)
  check_options(**options)
  filter_shape(filters, x, others[0], groups=1)


def _check_pending(pending: Any) -> None:
  check_type("pending", pending, PendingSum, "from kernels.standardized_conv_se")
  wide, scale = "height width images channels", "images channels"
  check_arrays(
    **{
      f"pending.{name}": (array, axes)
      for name, array, axes in zip(
        PendingSum._fields, pending, (wide, wide, scale, scale), strict=True
      )
    }
  )


def _convolution_of_sum_by_kernels(pending, filters, bias, **static):
  """Lets the convolution add up or, where it cannot, a kernel of its own."""
  try:
    return pallas.standardized_convolution_of_sum(pending, filters, bias, **static)
  except NotImplementedError:
    x = add_up(pending, implementation="pallas")
    return tuple(standardized_convolution(x, filters, bias, **static, implementation="pallas"))
