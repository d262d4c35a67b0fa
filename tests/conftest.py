"""Strictness that every test runs under; it has to be set before JAX or the project is imported."""

import gc
import os
import sys
import tempfile
import uuid

from tests import gcs_server
from tests.quick_compilation import XLA_FLAGS

os.environ["JAX_PLATFORMS"] = "cpu"
# Several devices, so that sharding is real.
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8 {XLA_FLAGS}"
# Compiling is most of what the tests take, and many compile the same program. The other test
# processes, and the commands that tests start, share the folder through the environment.
if "PYTEST_XDIST_WORKER" not in os.environ:
  _compilation_cache = tempfile.TemporaryDirectory(prefix="compilation_cache_")
  os.environ["JAX_COMPILATION_CACHE_DIR"] = _compilation_cache.name
  _tpu_compilations = tempfile.TemporaryDirectory(prefix="tpu_compilations_")
  os.environ["TEST_TPU_COMPILATIONS"] = _tpu_compilations.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# Where Python is told to write no bytecode, hundreds of processes would compile the same modules.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

import jax
import jaxtyping
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jaxtyping.install_import_hook(["kernels", "nfnet"], "beartype.beartype")

_LONG = (
  "test_training_with_kernels.py",
  "test_processes.py",
  "test_scaled_ws_conv_kernel.py",
  "test_train_step.py",
  "test_loop.py",
  "test_model.py",
  "test_commands.py",
  "test_termination.py",
  "test_compilation.py",
  "test_sweep.py",
  "test_faulty_runs.py",
  "test_mains.py",
  "test_golden.py",
  "test_parameters.py",
  "test_se_residual_kernel.py",
  "test_predict.py",
  "test_kernel_compilation.py",
)
"""Files that take half a minute or more."""


def pytest_collection_modifyitems(items):
  """A file stays in one process: with the longest last, the other processes would wait for it."""
  items.sort(key=lambda item: item.path.name not in _LONG)


def pytest_collection_finish():
  """Makes Python look for garbage less often: it took a fifteenth of the time."""
  gc.freeze()
  gc.set_threshold(5_000, 50, 50)


@pytest.fixture(scope="module")
def small_networks():
  """Networks for tests, in this process."""
  # Not before the hook.
  from nfnet import variants
  from tests.train import small_network

  with pytest.MonkeyPatch.context() as patch:
    for variant in (small_network.SMALL, small_network.TINY):
      patch.setitem(variants.VARIANTS, variant.name, variant)
    yield


@pytest.fixture(scope="session")
def gcs_storage(tmp_path_factory):
  """Stands for Google Cloud Storage, in this process and those that it starts."""
  with gcs_server.serving() as (address, storage), pytest.MonkeyPatch.context() as patch:
    for name, value in gcs_server.environment(address).items():
      patch.setenv(name, value)
    patch.setenv("NFNETS_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield storage


@pytest.fixture
def gcs(gcs_storage):
  """Yields an empty bucket."""
  bucket = gcs_server.Bucket(gcs_storage, f"bucket-{uuid.uuid4().hex}")
  gcs_storage.buckets.add(bucket.name)
  yield bucket
  gcs_storage.refuse = lambda method, address: None
