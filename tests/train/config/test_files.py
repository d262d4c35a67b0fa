import re

import pytest

from nfnet.errors import UserError
from tests.train.config.valid_experiment import VALID
from train.config.files import load_experiment


def test_file_gives_the_experiment_and_no_bytecode(config, tmp_path):
  assert load_experiment(config) == VALID
  assert [path.name for path in tmp_path.iterdir()] == ["config.py"]


@pytest.mark.parametrize(
  ("source", "message"),
  [
    ("def experiment(:", "line 1: invalid syntax"),
    ("x = 1", "has no function experiment()"),
    ("experiment = 3", "has no function experiment()"),
    ("def experiment():\n  return {}", "returned dict"),
    ("import nothing_like_this", "line 1: ModuleNotFoundError"),
    ("def experiment():\n  return 1 / 0", "line 2: ZeroDivisionError"),
    (
      "from train.config.experiment import Data\ndef experiment():\n  return Data(batchsize=1)",
      "nearest field: batch_size",
    ),
    (
      "from train.config.experiment import *\n"
      "def experiment():\n  return Experiment(name='x', model='F0')",
      "model='F0': must be a Model(...)",
    ),
  ],
)
def test_bad_file_is_refused(tmp_path, source, message):
  path = tmp_path / "config.py"
  path.write_text(source)
  with pytest.raises(UserError, match=re.escape(message)) as caught:
    load_experiment(str(path))
  assert "\n" not in str(caught.value)
  assert message.startswith(("model", "nearest")) or str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["absent.py", "."])
def test_unreadable_file_is_refused(tmp_path, name):
  with pytest.raises(UserError, match="cannot be read"):
    load_experiment(str(tmp_path / name))
