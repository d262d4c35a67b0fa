"""One step of SGD with AGC of many small parameters as one Pallas TPU kernel.

Gains, biases, skip gains and the stem's first filters: a network has thousands of them and a launch
for each takes longer than the work. A call has as many whole parameters in VMEM as fit there.
"""

import functools
import math
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from kernels.sgd_agc.kernel_tpu import averaged, clip_scale, moved, stacked_hyper_parameters
from kernels.tpu import LANES, SUBLANES, result_like

ELEMENTS_MAX = 32_768
"""Of filters and matrices; larger ones keep HBM busy on their own."""
TRANSPOSED_ELEMENTS_MAX = 131_072
"""Of matrices that are the other way round in memory, whose units the other kernel cannot have."""
VMEM_BYTES = 10 << 20
"""Of all arrays of a call; the compiler keeps some of the 16 MiB for itself."""
PARAMETERS_MAX = 128
"""Of a call: each is written out in the kernel."""

_Arrays = Mapping[str, Float[Array, "..."]]


def is_small(shape: tuple[int, ...], stacked: bool) -> bool:
  """Whether a parameter is for this kernel: vectors and scalars, and small filters and matrices.

  Args:
    shape: of the parameter.
    stacked: the first axis counts parameters.
  """
  if len(shape) - stacked < 2:
    return True
  limit = TRANSPOSED_ELEMENTS_MAX if _is_transposed(shape) else ELEMENTS_MAX
  return not stacked and math.prod(shape) <= limit


def _is_transposed(shape: tuple[int, ...]) -> bool:
  """Whether XLA has the outputs of a matrix before its inputs, since only these fill the lanes."""
  *taps, inputs, outputs = shape
  return math.prod(taps) == 1 and inputs % LANES == 0 and outputs % LANES != 0


def sgd_agc(
  parameters: _Arrays,
  gradients: _Arrays,
  momentum_buffers: _Arrays,
  averages: _Arrays | None,
  learning_rate: Float[Array, ""],
  momentum: Float[Array, ""],
  weight_decay: Float[Array, ""],
  clipping: Float[Array, ""] | None,
  average_decay: Float[Array, ""] | None,
  *,
  stacked: bool,
  parameter_norm_floor: float,
  gradient_norm_floor: float,
) -> tuple[_Arrays, _Arrays, _Arrays | None, Float[Array, ""]]:
  """As the reference of each; the sum of squares is that of all.

  Raises:
    NotImplementedError: other dtypes than float32 (gradients may have any), or one parameter that
      does not fit VMEM.
  """
  names = list(parameters)
  # Little work, and one layout for all.
  gradients = {name: x.astype(jnp.float32) for name, x in gradients.items()}
  kinds = [parameters, gradients, momentum_buffers, *([] if averages is None else [averages])]
  if {kind[name].dtype for kind in kinds for name in names} != {jnp.dtype(jnp.float32)}:
    raise NotImplementedError("a dtype other than float32")
  hyper_parameters = stacked_hyper_parameters(
    learning_rate, momentum, weight_decay, clipping, average_decay
  )
  changed = [{} for _ in range(len(kinds) - 1)]
  square_sum = jnp.zeros((), jnp.float32)
  for some in _calls(parameters, 2 * len(kinds) - 1):
    results, squares = _call(
      hyper_parameters,
      [[kind[name] for name in some] for kind in kinds],
      stacked=stacked,
      clips=clipping is not None,
      floors=(parameter_norm_floor, gradient_norm_floor),
    )
    for new, arrays in zip(changed, results, strict=True):
      new.update(zip(some, arrays, strict=True))
    square_sum += squares
  return changed[0], changed[1], None if averages is None else changed[2], square_sum


def _calls(parameters: _Arrays, arrays: int) -> Iterator[list[str]]:
  """Names of parameters that fit VMEM together, each with so many arrays of its shape."""
  names, total = [], 0
  for name, parameter in parameters.items():
    own = arrays * _vmem_bytes(parameter.shape)
    if own > VMEM_BYTES:
      raise NotImplementedError("a small parameter that does not fit VMEM")
    if total + own > VMEM_BYTES or len(names) == PARAMETERS_MAX:
      yield names
      names, total = [], 0
    names.append(name)
    total += own
  yield names


def _vmem_bytes(shape: tuple[int, ...]) -> int:
  """Of an array in whole tiles."""
  if len(shape) < 2:
    tile = SUBLANES * LANES
    return 4 * tile * math.ceil(math.prod(shape) / tile)
  *major, sublanes, lanes = shape
  tiles = math.ceil(sublanes / SUBLANES) * math.ceil(lanes / LANES)
  return 4 * SUBLANES * LANES * math.prod(major) * tiles


@functools.partial(jax.jit, static_argnames=("stacked", "clips", "floors"))
def _call(hyper_parameters, kinds, *, stacked, clips, floors):
  """The kinds but the second anew, in place, and the sum of the squared gradients."""
  shapes = [x.shape for x in kinds[0]]
  transposes = [len(shape) > 1 and not stacked and _is_transposed(shape) for shape in shapes]
  n = len(shapes)

  def as_operand(x, transposes):
    if transposes:
      return jnp.transpose(jnp.reshape(x, x.shape[-2:]))
    return jnp.reshape(x, (1,)) if x.ndim == 0 else x

  def as_parameter(x, transposes, shape):
    return jnp.reshape(jnp.transpose(x) if transposes else x, shape)

  operands = [as_operand(*pair) for kind in kinds for pair in zip(kind, transposes, strict=True)]

  # The rows of a matrix the other way round are units, as vectors of a stack are.
  stacks = [stacked or one for one in transposes]
  in_vmem, in_smem = (pl.BlockSpec(memory_space=space) for space in (pltpu.VMEM, pltpu.SMEM))
  changed = [i for i in range(len(operands)) if not n <= i < 2 * n]
  *results, squares = pl.pallas_call(
    functools.partial(_body, stacked=stacks, clips=clips, floors=floors),
    in_specs=[in_smem, *[in_vmem] * len(operands)],
    out_specs=[*[in_vmem] * len(changed), in_smem],
    out_shape=[
      result_like(operands[n], shape, jnp.float32)
      for shape in (*(operands[i].shape for i in changed), (1,))
    ],
    input_output_aliases={1 + i: output for output, i in enumerate(changed)},
    name="sgd_agc_small",
  )(hyper_parameters, *operands)
  return [
    [as_parameter(*one) for one in zip(results[i : i + n], transposes, shapes, strict=True)]
    for i in range(0, len(results), n)
  ], squares[0]


def _body(hyper_parameters, *refs, stacked, clips, floors):
  *refs, squares = refs
  # Parameters, gradients, buffers and averages; then all but the gradients anew.
  n = len(stacked)
  groups = [refs[i : i + n] for i in range(0, len(refs), n)]
  learning_rate, momentum, weight_decay, clipping, average_rate = (
    hyper_parameters[i] for i in range(5)
  )
  total = 0.0
  for has_stack, parameter, gradient, buffer, *others in zip(stacked, *groups, strict=True):
    *average, new_parameter, new_buffer = others if len(others) == 2 else others[:-1]
    for at in _chunks(parameter.shape, has_stack):
      p, g = parameter[at], gradient[at]
      rank = p.ndim - has_stack
      axes = tuple(range(has_stack, p.ndim - (rank > 1)))

      def norm(x, axes=axes):
        return jnp.sqrt(jnp.sum(x * x, axis=axes, keepdims=True)) if axes else jnp.abs(x)

      total += jnp.sum(g * g)
      if clips:
        g = g * clip_scale(norm(p), norm(g), clipping, floors)
      p, m = moved(p, g, buffer[at], learning_rate, momentum, weight_decay)
      new_parameter[at] = p
      new_buffer[at] = m
      if average:
        others[-1][at] = averaged(average[0][at], p, average_rate)
  squares[0] = total


def _chunks(shape: tuple[int, ...], stacked: bool) -> Iterator[slice]:
  """Of the first axis: of a stack, as many vectors as there are sublanes."""
  step = SUBLANES if stacked and len(shape) > 1 else shape[0]
  for i in range(0, shape[0], step):
    yield slice(i, min(i + step, shape[0]))
