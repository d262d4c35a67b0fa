import pytest

from nfnet.errors import UserError
from train.data.batch_workers.batches_ahead import batches_ahead

GIB = 2**30


def test_each_worker_has_a_batch_to_make_and_one_to_hand_over():
  assert batches_ahead(4, batch_bytes=1000) == 8


def test_threads_make_no_more_batches_than_two_gigabytes_hold():
  assert batches_ahead(0, batch_bytes=GIB, memory_bytes=64 * GIB) <= 2
  assert batches_ahead(0, batch_bytes=3 * GIB, memory_bytes=64 * GIB) == 1


@pytest.mark.parametrize("workers", [0, 5])
def test_batches_that_do_not_fit_into_memory_are_refused(workers):
  fitting = 1 + batches_ahead(workers, batch_bytes=3 * GIB, memory_bytes=64 * GIB)
  batches_ahead(workers, batch_bytes=3 * GIB, memory_bytes=fitting * 3 * GIB)
  with pytest.raises(UserError, match=f"data.workers={workers}: {fitting} batches of 3.22 GB"):
    batches_ahead(workers, batch_bytes=3 * GIB, memory_bytes=fitting * 3 * GIB - 1)
