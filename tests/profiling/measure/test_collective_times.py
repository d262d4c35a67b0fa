import jax

from profiling.measure import collective_times


def test_whole_arrays_are_exchanged_by_all_devices(monkeypatch):
  """Each collective runs once instead of being timed."""
  results = []

  def run_once(run, arguments, calls):
    (array,) = arguments
    results.append((array, run(array), calls))
    return 1.5

  monkeypatch.setattr(collective_times, "seconds_per_call", run_once)
  rows = collective_times.time_collectives([1, 2], calls=3)
  devices = jax.device_count()
  assert devices > 1
  assert [(row.name, row.whole_bytes, row.seconds) for row in rows] == [
    (name, size * 2**20, 1.5) for size in (1, 2) for name in ("psum", "all_gather", "psum_scatter")
  ]
  for row, (array, result, calls) in zip(rows, results, strict=True):
    assert calls == 3
    assert array.nbytes == result.nbytes == row.whole_bytes
    # Sums of ones; a gathered array is not summed.
    assert float(result[0]) == (1 if row.name == "all_gather" else devices)
    assert array.is_fully_replicated == (row.name != "all_gather")
    assert result.is_fully_replicated == (row.name != "psum_scatter")
