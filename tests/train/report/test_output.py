import json

import pytest

from nfnet.errors import UserError
from train.report.figure import new_plot
from train.report.output import (
  print_and_write,
  save_figure,
  save_figures,
  write_csv,
  write_json,
)


def test_json_is_written_if_there_is_a_path(tmp_path):
  write_json("json", str(tmp_path / "a.json"), {"loss": [1.5]})
  write_json("json", None, {"loss": [1.5]})
  assert json.loads((tmp_path / "a.json").read_text()) == {"loss": [1.5]}
  assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_folders_of_files_are_created(tmp_path):
  write_json("json", str(tmp_path / "new" / "folder" / "a.json"), {})
  assert (tmp_path / "new" / "folder" / "a.json").exists()


def test_all_kinds_of_results_are_written_into_a_bucket(gcs):
  figure, _ = new_plot("title", "x", "y")
  write_json("json", f"{gcs.url}/results/a.json", {"loss": [1.5]})
  write_csv("csv", f"{gcs.url}/results/a.csv", [["a", "b"]])
  save_figure("plot", f"{gcs.url}/results/a.png", lambda: figure)
  assert json.loads(gcs.read("results/a.json")) == {"loss": [1.5]}
  assert gcs.read("results/a.csv") == b"a,b\n"
  assert gcs.read("results/a.png").startswith(b"\x89PNG")


def test_a_result_is_printed_though_a_file_of_it_cannot_be_written(tmp_path, capsys):
  figure, _ = new_plot("title", "x", "y")
  with pytest.raises(UserError, match="--json=/dev/full cannot be written: No space left"):
    print_and_write(
      "the table",
      lambda: write_json("json", "/dev/full", {}),
      lambda: save_figure("plot", str(tmp_path / "a.png"), lambda: figure),
    )
  assert capsys.readouterr().out == "the table\n"
  assert (tmp_path / "a.png").exists()


def test_several_figures_are_named_by_their_keys(tmp_path):
  figure, _ = new_plot("title", "x", "y")
  written = save_figures("plots", tmp_path / "new" / "plots", {"loss": figure, "absent": None})
  assert written == [tmp_path / "new" / "plots" / "loss.png"]
  assert written[0].read_bytes().startswith(b"\x89PNG")


def test_files_that_cannot_be_written_are_named(tmp_path):
  figure, _ = new_plot("title", "x", "y")
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match=r"--json=.*file/a\.json cannot be written: "):
    write_json("json", str(tmp_path / "file" / "a.json"), {})
  with pytest.raises(UserError, match=r"--plot=.*file/a\.png cannot be written: "):
    save_figure("plot", str(tmp_path / "file" / "a.png"), lambda: figure)
  with pytest.raises(UserError, match="--plots=DIR cannot be written: File exists"):
    save_figures("--plots=DIR", tmp_path / "file", {"loss": figure})
