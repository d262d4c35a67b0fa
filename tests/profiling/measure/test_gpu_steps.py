import jax
import pytest

from profiling.measure.gpu_steps import BATCH_SIZE, CONFIG, PIXELS, has_gpu, overrides
from train.config.files import load_experiment


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="there is a GPU")
def test_without_a_gpu_nothing_is_measured():
  assert not has_gpu()


def test_the_step_is_that_of_timm():
  """`profiling.trace` takes these arguments; tests/profiling/test_trace.py runs it."""
  experiment = load_experiment(str(CONFIG), overrides("F3"))
  assert (experiment.data.batch_size, experiment.data.train_pixels) == (BATCH_SIZE, PIXELS)
  assert (experiment.model.variant, experiment.model.compute_dtype) == ("F3", "bfloat16")
  assert experiment.model.stochastic_depth_rate == 0
  assert experiment.optimizer.ema_decay is None
  assert (experiment.mixing.mixup_alpha, experiment.mixing.cutmix) == (None, False)
