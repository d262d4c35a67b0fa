import pytest

from nfnet.errors import UserError
from train.run.records.loggers import load_loggers


def test_a_logger_that_is_named_twice_is_refused():
  assert list(load_loggers(["json:loads", "json:dumps"])) == ["json:loads", "json:dumps"]
  with pytest.raises(UserError, match=r"^--logger=json:loads is given twice; give it once$"):
    load_loggers(["json:loads", "json:dumps", "json:loads"])
