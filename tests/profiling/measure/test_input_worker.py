import random
import subprocess
import sys
import time

import numpy as np
import pytest

from profiling.measure.input_pipelines import random_box
from profiling.measure.input_worker import cpu_seconds


def test_pillows_crops_have_the_distribution_of_training():
  generator = random.Random(0)
  boxes = np.array([random_box(1000, 1000, generator) for _ in range(4000)])
  widths, heights = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
  # The same expectations as in tests/train/data/test_augmentation.py.
  assert (widths * heights / 1e6).mean() == pytest.approx(0.478, abs=0.016)
  assert np.log(widths / heights).mean() == pytest.approx(0, abs=0.015)
  assert (boxes[:, 0] - (1000 - boxes[:, 2])).mean() == pytest.approx(0, abs=20)


def test_cpu_time_is_that_of_all_processes():
  before = cpu_seconds()
  code = "import time\nwhile time.process_time() < 0.5: pass\nprint(flush=True)\ntime.sleep(60)"
  with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
    process.stdout.readline()
    running = cpu_seconds() - before
    process.kill()
  ended = cpu_seconds() - before
  # The clock ticks a hundred times a second.
  assert running >= 0.45
  assert ended >= 0.45
  started = cpu_seconds()
  time.sleep(0.3)
  assert cpu_seconds() - started < 0.2
