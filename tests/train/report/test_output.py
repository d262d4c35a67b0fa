import json

import pytest

from nfnet.errors import UserError
from train.report.figure import picture
from train.report.output import save_figure, save_plots, write_json


@pytest.fixture
def nowhere(tmp_path):
  """A path below a file."""
  (tmp_path / "file").write_text("")
  return str(tmp_path / "file" / "below")


def test_json_goes_where_the_flag_says(tmp_path):
  write_json("json", None, {})
  write_json("json", str(tmp_path / "one.json"), {"a": [1, None]})
  assert json.loads((tmp_path / "one.json").read_text()) == {"a": [1, None]}


def test_results_that_cannot_be_written_name_the_flag(nowhere):
  figure, _ = picture("title", "x", "y")
  with pytest.raises(UserError, match=r"--json=.*below cannot be written: Not a directory"):
    write_json("json", nowhere, {})
  with pytest.raises(UserError, match=r"--plot=.*below cannot be written: Not a directory"):
    save_figure("plot", nowhere, figure)
  with pytest.raises(UserError, match=r"plots cannot be written to '.*below': Not a directory"):
    save_plots(nowhere, {"one": figure})


def test_each_plot_is_a_file_of_its_name(tmp_path):
  figure, _ = picture("title", "x", "y")
  written = save_plots(tmp_path / "plots", {"one": figure, "two": figure})
  assert written == [tmp_path / "plots" / "one.png", tmp_path / "plots" / "two.png"]
  assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)
