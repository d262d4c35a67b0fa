import sys

import pytest

from nfnet.errors import UserError
from train.data.image_sources import read_source


def test_the_message_says_what_to_install(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "pyarrow", None)
  (tmp_path / "a.parquet").write_bytes(b"PAR1")
  with pytest.raises(UserError, match="pyarrow, which is not installed: pip install pyarrow"):
    read_source(tmp_path)
