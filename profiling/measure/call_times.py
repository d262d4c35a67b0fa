"""Times calls of a compiled program on the devices of this machine."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax

_ROUNDS = 3

Arguments = tuple[Any, ...]


def seconds_per_call(
  run: Callable[..., Any],
  arguments: Arguments,
  calls: int,
  *,
  next_arguments: Callable[[Arguments, Any], Arguments] = lambda arguments, _: arguments,
) -> float:
  """Returns the median over some rounds of the mean time of calls without a wait in between.

  Args:
    run: jitted function; its first call, which compiles, is not timed.
    arguments: arguments of the first call.
    calls: number of calls in a round.
    next_arguments: function from the arguments and the result of a call to the next arguments, for
      programs that overwrite some of theirs.
  """
  result = jax.block_until_ready(run(*arguments))
  seconds = []
  for _ in range(_ROUNDS):
    started = time.perf_counter()
    for _ in range(calls):
      arguments = next_arguments(arguments, result)
      result = run(*arguments)
    jax.block_until_ready(result)
    seconds.append((time.perf_counter() - started) / calls)
  return statistics.median(seconds)
