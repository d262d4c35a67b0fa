import itertools
import os
import subprocess
import sys

from profiling.compile.worker_process import ENVIRONMENT
from profiling.compiler_text.schedule import read_schedule, unroll
from tests.repository import ROOT
from tests.train.step.gathering_program import LAYERS


def test_weights_are_gathered_together_and_while_earlier_layers_run():
  command = [sys.executable, "-m", "tests.train.step.gathering_program"]
  compiled = subprocess.run(
    command, cwd=ROOT, env={**os.environ, **ENVIRONMENT}, stdout=subprocess.PIPE, check=True
  )
  events = list(unroll(read_schedule(compiled.stdout.decode())))
  actions = [event.action for event in events if "all-gather" in event.name]
  assert sorted(actions) == ["done"] * LAYERS + ["start"] * LAYERS
  first_starts = itertools.takewhile(lambda action: action == "start", actions)
  assert len(list(first_starts)) > LAYERS // 2
  # Between the ends of two gathers is the product with the first of their results.
  dones = [i for i, event in enumerate(events) if event.action == "done"]
  for end, following in itertools.pairwise(dones):
    assert any(event.action == "run" for event in events[end + 1 : following])
