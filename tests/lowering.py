"""Lets programs run on a CPU what they would run on a TPU, with interpreted kernels."""


def as_on_a_tpu(*arguments, tpu=None, default=None, cpu=None):
  """Stands in for `jax.lax.platform_dependent`."""
  return (tpu or cpu or default)(*arguments)
