"""Times the collectives of a training step on all devices of this machine."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from tqdm import tqdm

from profiling.measure.call_times import seconds_per_call

_AXIS = "device"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CollectiveTime:
  """The measured time of one collective.

  Attributes:
    name: JAX's name: "psum", "all_gather" or "psum_scatter".
    whole_bytes: size of the array before it is scattered or after it is gathered.
    seconds: time of one call.
  """

  name: str
  whole_bytes: int
  seconds: float


def time_collectives(mebibytes: Sequence[int], calls: int) -> list[CollectiveTime]:
  """Times each collective with float32 arrays of each size, over all devices.

  Args:
    mebibytes: sizes of the whole arrays.
    calls: number of calls that one measurement averages over.
  """
  devices = jax.devices()
  mesh = jax.make_mesh((len(devices),), (_AXIS,), (jax.sharding.AxisType.Auto,), devices=devices)
  divided, whole = PartitionSpec(_AXIS), PartitionSpec()
  rows = []
  for mebibyte in tqdm(mebibytes, desc="collectives", leave=False, disable=None):
    # Sizes are rounded down to what divides among the devices.
    elements = mebibyte * 2**20 // 4 // len(devices) * len(devices)
    collectives = {
      "psum": (functools.partial(jax.lax.psum, axis_name=_AXIS), whole, whole),
      "all_gather": (
        functools.partial(jax.lax.all_gather, axis_name=_AXIS, tiled=True),
        divided,
        whole,
      ),
      "psum_scatter": (
        functools.partial(jax.lax.psum_scatter, axis_name=_AXIS, tiled=True),
        whole,
        divided,
      ),
    }
    for name, (function, before, after) in collectives.items():
      # The values are the same on all devices, which the compiler is not told.
      run = jax.jit(
        jax.shard_map(function, mesh=mesh, in_specs=before, out_specs=after, check_vma=False)
      )
      array = jax.device_put(jnp.ones(elements, jnp.float32), NamedSharding(mesh, before))
      seconds = seconds_per_call(run, (array,), calls)
      rows.append(CollectiveTime(name=name, whole_bytes=4 * elements, seconds=seconds))
  return rows
