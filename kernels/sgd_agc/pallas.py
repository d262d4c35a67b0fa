"""SGD with AGC with implementation="pallas": what kernels cover, and how they are called."""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels.layout import has_symbolic_dimension
from kernels.sgd_agc import update_rows_tpu
from kernels.sgd_agc.formulas import Arrays, HyperParameters, Step, step_of_each
from kernels.sgd_agc.problem import is_small, is_small_transposed, is_transposed, problem_of
from kernels.sgd_agc.small_tpu import Whole, update_small
from kernels.sgd_agc.tile import calls_of_small, choose
from kernels.sgd_agc.update_tpu import update


def sgd_agc_step(
  parameters: Arrays,
  gradients: Arrays,
  momentum_buffers: Arrays,
  emas: Arrays | None,
  learning_rate: Float[Array, ""],
  momentum: Float[Array, ""],
  weight_decay: Float[Array, ""],
  clipping: Float[Array, ""] | None,
  ema_decay: Float[Array, ""] | None,
  *,
  stacked: bool,
) -> Step:
  """Computes what the reference computes, from the same arguments.

  The parameters must be one of the `batches`: all small (`kernels.sgd_agc.problem.is_small`) or all
  large.

  Raises:
    NotImplementedError: for shapes other than vectors, scalars, matrices (IO) and filters (HWIO) of
      whole tiles, and for dtypes other than float32, except that gradients may be bfloat16.
  """
  zero = jnp.zeros((), jnp.float32)
  hyper_parameters = jnp.stack(
    HyperParameters(
      learning_rate=learning_rate,
      momentum=momentum,
      weight_decay=weight_decay,
      clipping=zero if clipping is None else clipping,
      ema_rate=zero if ema_decay is None else 1 - ema_decay,
    )
  )
  arrays = parameters, gradients, momentum_buffers, emas
  _check_dtypes(*arrays)
  clips = clipping is not None
  if all(is_small(x.shape, stacked) for x in parameters.values()):
    return _small_step(hyper_parameters, *arrays, stacked=stacked, clips=clips)
  update_one = functools.partial(_update_one, hyper_parameters, clips=clips)
  return step_of_each(update_one, *arrays, stacked=stacked)


def batches(parameters: Arrays, stacked: bool) -> list[list[str]]:
  """Divides parameters, by name, into batches for one call of `sgd_agc_step` each.

  A large parameter keeps HBM busy on its own; all small ones go together. One of a symbolic size
  counts as large, so that it alone is left to the reference.
  """
  small = [
    name
    for name, x in parameters.items()
    if not has_symbolic_dimension(x.shape) and is_small(x.shape, stacked)
  ]
  large = [[name] for name in parameters if name not in small]
  return [*large, small] if small else large


def _check_dtypes(
  parameters: Arrays, gradients: Arrays, momentum_buffers: Arrays, emas: Arrays | None
) -> None:
  state = [*parameters.values(), *momentum_buffers.values(), *(emas or {}).values()]
  if any(x.dtype != jnp.float32 for x in state) or any(
    x.dtype not in (jnp.float32, jnp.bfloat16) for x in gradients.values()
  ):
    raise NotImplementedError("a dtype other than float32, or bfloat16 of the gradient")


def _update_one(
  hyper_parameters: Float[Array, "5"],
  parameter: Float[Array, "*p"],
  gradient: Float[Array, "*p"],
  momentum_buffer: Float[Array, "*p"],
  ema: Float[Array, "*p"] | None,
  *,
  clips: bool,
) -> tuple[Float[Array, "*p"], Float[Array, "*p"], Float[Array, "*p"] | None, Float[Array, ""]]:
  """Calls the kernel of one large parameter on matrices whose columns are units."""
  shape = parameter.shape
  if clips and len(shape) in (2, 4) and update_rows_tpu.covers(shape, gradient.dtype.itemsize):
    return _update_rows(hyper_parameters, parameter, gradient, momentum_buffer, ema)
  problem = problem_of(
    shape,
    clips=clips,
    gradient_itemsize=gradient.dtype.itemsize,
    has_ema=ema is not None,
  )
  transposes = is_transposed(shape, clips=clips)

  def as_matrix(x):
    x = jnp.reshape(x, (-1, shape[-1]))
    return jnp.transpose(x) if transposes else x

  def as_parameter(x):
    return jnp.reshape(jnp.transpose(x) if transposes else x, shape)

  matrix, gradient, buffer_matrix = map(as_matrix, (parameter, gradient, momentum_buffer))
  if problem.gradient_itemsize > gradient.dtype.itemsize:
    gradient = gradient.astype(jnp.float32)
  new_parameter, new_buffer, new_ema, squares = update(
    hyper_parameters,
    matrix,
    gradient,
    buffer_matrix,
    None if ema is None else as_matrix(ema),
    blocks=choose(problem),
  )
  return (
    as_parameter(new_parameter),
    as_parameter(new_buffer),
    None if ema is None else as_parameter(new_ema),
    jnp.sum(squares),
  )


def _update_rows(
  hyper_parameters: Float[Array, "5"],
  parameter: Float[Array, "*p"],
  gradient: Float[Array, "*p"],
  momentum_buffer: Float[Array, "*p"],
  ema: Float[Array, "*p"] | None,
) -> tuple[Float[Array, "*p"], Float[Array, "*p"], Float[Array, "*p"] | None, Float[Array, ""]]:
  """Calls the kernel of one large parameter on the arrays as XLA stores them, units in rows."""
  *taps, inputs, units = shape = parameter.shape

  def in_rows(x):
    return None if x is None else jnp.swapaxes(x.reshape(math.prod(taps), inputs, units), 1, 2)

  *new, squares = update_rows_tpu.update_rows(
    hyper_parameters, *map(in_rows, (parameter, gradient, momentum_buffer, ema))
  )
  new = (None if x is None else jnp.swapaxes(x, 1, 2).reshape(shape) for x in new)
  return *new, jnp.sum(squares)


def _small_step(
  hyper_parameters: Float[Array, "5"],
  parameters: Arrays,
  gradients: Arrays,
  momentum_buffers: Arrays,
  emas: Arrays | None,
  *,
  stacked: bool,
  clips: bool,
) -> Step:
  """Calls the kernel of small parameters, several times if they do not fit VMEM together."""
  # Converting them is little work and gives all gradients one layout.
  gradients = {name: x.astype(jnp.float32) for name, x in gradients.items()}
  trees = parameters, gradients, momentum_buffers, emas
  step = Step({}, {}, None if emas is None else {}, jnp.zeros((), jnp.float32))
  shapes = {name: x.shape for name, x in parameters.items()}
  for names in calls_of_small(shapes, arrays=5 if emas is None else 7):
    *results, square_sum = _call_small(
      hyper_parameters,
      *(None if tree is None else tuple(tree[name] for name in names) for tree in trees),
      stacked=stacked,
      clips=clips,
    )
    for tree, arrays in zip(step[:3], results, strict=True):
      if tree is not None:
        tree.update(zip(names, arrays, strict=True))
    step = step._replace(gradient_square_sum=step.gradient_square_sum + square_sum)
  return step


@functools.partial(jax.jit, static_argnames=("stacked", "clips"))
def _call_small(
  hyper_parameters: Float[Array, "5"],
  parameters: Whole,
  gradients: Whole,
  momentum_buffers: Whole,
  emas: Whole | None,
  *,
  stacked: bool,
  clips: bool,
) -> tuple[Whole, Whole, Whole | None, Float[Array, ""]]:
  """Calls the kernel of small parameters once, on arrays as XLA stores them."""
  shapes = [x.shape for x in parameters]
  transposes = [len(shape) > 1 and not stacked and is_small_transposed(shape) for shape in shapes]

  def as_operand(x, is_transposed):
    if is_transposed:
      return jnp.transpose(jnp.reshape(x, x.shape[-2:]))
    return jnp.reshape(x, (1,)) if x.ndim == 0 else x

  def as_parameter(x, is_transposed, shape):
    return jnp.reshape(jnp.transpose(x) if is_transposed else x, shape)

  operands = (
    None if arrays is None else tuple(map(as_operand, arrays, transposes))
    for arrays in (parameters, gradients, momentum_buffers, emas)
  )
  # The rows of a transposed matrix are units, like the vectors of a stack.
  stacks = tuple(stacked or is_transposed for is_transposed in transposes)
  *results, square_sum = update_small(hyper_parameters, *operands, stacks=stacks, clips=clips)
  new = (
    None if arrays is None else tuple(map(as_parameter, arrays, transposes, shapes))
    for arrays in results
  )
  return *new, square_sum[0]
