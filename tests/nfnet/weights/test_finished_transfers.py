"""Event loops that Orbax closes at the first error."""

import asyncio
import gc

import pytest

from nfnet.weights.finished_transfers import finished_transfers


async def fail_after(iterations):
  for _ in range(iterations):
    await asyncio.sleep(0)
  raise OSError(f"after {iterations}")


async def transfers(*iterations):
  await asyncio.gather(*map(fail_after, iterations))


def test_errors_beside_the_first_are_not_reported(caplog):
  # The loop stops three iterations after the first error.
  for iterations in (*range(6), 50):
    with finished_transfers():
      loop = asyncio.new_event_loop()
    with pytest.raises(OSError, match="after 0"):
      loop.run_until_complete(transfers(0, iterations))
    loop.close()
  # Once for all: it takes seconds in a process that has run many tests.
  gc.collect()
  assert caplog.messages == []
