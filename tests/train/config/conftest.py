import textwrap

import pytest


@pytest.fixture
def config(tmp_path):
  """Writes a configuration file for `valid_experiment.VALID` and returns its path."""
  path = tmp_path / "config.py"
  path.write_text(
    textwrap.dedent("""\
      from train.config.experiment import Data, Experiment, Optimizer, Schedule

      def experiment():
        return Experiment(
          name="valid",
          data=Data(batch_size=64),
          optimizer=Optimizer(warmup_steps=10),
          schedule=Schedule(train_steps=100),
        )
      """)
  )
  return str(path)
