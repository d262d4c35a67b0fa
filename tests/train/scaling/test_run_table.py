import os
import pathlib
import time

import pytest

from nfnet.cost import count
from nfnet.errors import UserError
from train.published_runs import PAPER_A_FINETUNED, PAPER_A_NFNETS
from train.scaling.run_table import best_trials, read_runs

HEADER = "name,parameters,epochs,compute_core_hours,loss_nats"


def write(folder, *lines, name="runs.csv"):
  path = folder / name
  path.write_text("\n".join(lines) + "\n", encoding="utf-8")
  return path


def test_reads_what_is_there(tmp_path):
  path = write(
    tmp_path,
    "# where they come from",
    "loss_nats, name ,compute_flops,epochs,parameters,learning_rate,top1_error_percent",
    "2.5,F0,1e20,0.25,160606284,1.6,",
    "",
    ',"ViT, large",3e20,,,,9.8',
  )
  table = read_runs([path])
  assert table.compute_column == "compute_flops"
  first, second = table.runs
  assert (first.name, first.loss_nats, first.compute, first.epochs) == ("F0", 2.5, 1e20, 0.25)
  assert (first.parameters, first.learning_rate, first.top1_error_percent) == (160606284, 1.6, None)
  assert (second.name, second.loss_nats, second.parameters) == ("ViT, large", None, None)
  assert second.top1_error_percent == 9.8
  assert second.place == f"{path}, line 5"


def test_files_are_one_table(tmp_path):
  one = write(tmp_path, HEADER, "a,1,1,1,3", name="one.csv")
  two = write(tmp_path, HEADER, "a,1,2,2,2", name="two.csv")
  assert [run.epochs for run in read_runs([one, two]).runs] == [1, 2]


@pytest.mark.parametrize(
  ("lines", "message"),
  [
    ([], "has no header"),
    ([HEADER], "no run in"),
    ([HEADER.replace("loss_nats", "loss")], "line 1: unknown column 'loss'"),
    ([HEADER + ",epochs"], "line 1: column 'epochs' comes twice"),
    ([HEADER + ",compute_flops"], "line 1: 2 columns of compute"),
    (["name,parameters,epochs,loss_nats"], "line 1: 0 columns of compute"),
    (["parameters,epochs,compute_flops,loss_nats"], "line 1: no column 'name'"),
    ([HEADER, "a,1,1,1"], "line 2: 4 fields below a header of 5: 'a,1,1,1'"),
    ([HEADER, "a,1,1,1,2", "# b", ",1,1,1,2"], "line 4: name is empty"),
    ([HEADER, "a,1,1,,2"], "line 2: compute_core_hours is empty"),
    ([HEADER, "a,1,1,1,"], "line 2: neither loss_nats nor top1_error_percent"),
    ([HEADER, "a,,1,1,2"], "line 2: parameters is empty"),
    ([HEADER, "a,1,,1,2"], "line 2: epochs is empty"),
    ([HEADER, "a,1,1,1,two"], "line 2: loss_nats='two': must be a number above 0"),
    ([HEADER, "a,1,1,1,nan"], "line 2: loss_nats='nan'"),
    ([HEADER, "a,1,1,inf,2"], "line 2: compute_core_hours='inf'"),
    ([HEADER, "a,1,-1,1,2"], "line 2: epochs='-1'"),
    ([HEADER, "a,0,1,1,2"], "line 2: parameters='0'"),
    ([HEADER, 'a,1,1,1,"2'], "line 2: not CSV"),
    ([HEADER, 'a,1,1,1,"2"3"'], "line 2: not CSV"),
    ([HEADER, "a,1,1,1e400,2"], "line 2: compute_core_hours='1e400'"),
    ([HEADER, "a,1,1,1e31,2"], r"compute_core_hours='1e31': must be from 1e-30 to 1e\+30"),
    ([HEADER, "a,1,1e-31,1,2"], "line 2: epochs='1e-31': must be from 1e-30"),
    ([HEADER, "a,1,1,1,2e6"], r"loss_nats='2e6': must be from 1e-06 to 1e\+06"),
    ([HEADER, "a,1,1,1," + "9" * 200], r"loss_nats='9{60}'\.\.\.: must be a number above 0|from"),
    ([HEADER, "a\0b,1,1,1,2"], r"name='a\\x00b': must be at most 200 printable"),
    ([HEADER, "\x1b[31m,1,1,1,2"], r"name='\\x1b\[31m': must be"),
    ([HEADER, "a" * 201 + ",1,1,1,2"], r"name='a{80}'\.\.\.: must be at most 200"),
    ([HEADER, "a" * 10_001], "line 2: 10,001 characters, where 10,000 are the most"),
    ([HEADER, '"' + "a" * 20_000 + '"'], "20,002 characters, where 10,000 are the most"),
    ([HEADER, "\x1b]0;title\x07,,,,,,"], r"7 fields .*: '\\x1b\]0;title\\x07,,,,,,'"),
    (["\x1b[31m,name"], r"line 1: unknown column '\\x1b\[31m'"),
    ([HEADER + ",top1_error_percent", "a,1,1,1,2,101"], "line 2: top1_error_percent=101"),
    ([HEADER, "a,1,1,1,2", "a,2,2,2,1"], "line 3: 'a' has parameters=2, but 1 in .*line 2"),
  ],
)
def test_a_bad_table_is_one_line_that_says_where(tmp_path, lines, message):
  path = write(tmp_path, *lines)
  with pytest.raises(UserError, match=message) as caught:
    read_runs([path])
  assert str(caught.value).isprintable()
  assert str(path) in str(caught.value)


def test_files_that_cannot_be_read_are_named(tmp_path):
  with pytest.raises(UserError, match=r"--runs=.*nowhere.csv cannot be read"):
    read_runs([tmp_path / "nowhere.csv"])
  path = tmp_path / "binary.csv"
  path.write_bytes(b"\xff\xfe\x00")
  with pytest.raises(UserError, match=r"binary.csv is not UTF-8"):
    read_runs([path])


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_ends_of_lines_and_byte_order_marks_of_other_programs(tmp_path, ends):
  path = tmp_path / "runs.csv"
  text = ends.join([f'"name", {HEADER.removeprefix("name,")}', '"a ""b""", 1,1 ,1,"2"', ""])
  path.write_bytes(b"\xef\xbb\xbf" + text.encode())
  (run,) = read_runs([path]).runs
  assert (run.name, run.parameters, run.epochs, run.loss_nats) == ('a "b"', 1, 1, 2)


def test_a_table_of_a_hundred_thousand_runs_is_read_and_a_larger_one_refused(tmp_path):
  path = write(tmp_path, HEADER, *["a,1,0.5,7,2.5"] * 100_000)
  began_seconds = time.process_time()
  assert len(read_runs([path]).runs) == 100_000
  # It took 8 s.
  assert time.process_time() - began_seconds < 5
  path = write(tmp_path, HEADER, *["a,1,0.5,7,2.5"] * 100_001)
  with pytest.raises(UserError, match="line 100002: more than 100,000 runs"):
    read_runs([path])


def test_what_is_no_table_is_not_read_whole(tmp_path):
  path = tmp_path / "runs.csv"
  with path.open("wb") as file:
    file.truncate(64 * 2**20 + 1)
  with pytest.raises(UserError, match="has more than 67,108,864 bytes"):
    read_runs([path])
  pipe = tmp_path / "pipe.csv"
  os.mkfifo(pipe)
  with pytest.raises(UserError, match=r"pipe\.csv cannot be read: not a regular file"):
    read_runs([pipe])


def test_files_with_two_units_are_refused(tmp_path):
  one = write(tmp_path, HEADER, "a,1,1,1,3", name="one.csv")
  two = write(tmp_path, HEADER.replace("core_hours", "flops"), "a,1,2,2,2", name="two.csv")
  with pytest.raises(UserError, match=r"one\.csv' has compute_core_hours, .*two\.csv' has"):
    read_runs([one, two])


def test_of_trials_the_best_counts(tmp_path):
  path = write(
    tmp_path,
    HEADER + ",learning_rate,top1_error_percent",
    "a,1,1,5,2.9,0.4,",
    "a,1,1,5,2.7,0.8,",
    "a,1,1,5,2.8,1.6,",
    "a,1,2,9,2.6,0.8,",
    "b,,,9,,,10",
  )
  assert [(run.epochs, run.learning_rate) for run in best_trials(read_runs([path]).runs)] == [
    (1, 0.8),
    (2, 0.8),
  ]


def test_tables_of_this_project_are_found_by_their_names(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert read_runs(["paper_a_nfnets", "paper_a_finetuned"]) == read_runs(
    [PAPER_A_NFNETS, PAPER_A_FINETUNED]
  )
  assert read_runs(["small_study_fashion_mnist"]).compute_column == "compute_flops"
  with pytest.raises(
    UserError,
    match=r"neither a file nor one of paper_a_fin.*, small_study_c.*_fashion_mnist$",
  ):
    read_runs(["small_studies"])
  # A file of the user's comes first.
  write(tmp_path, HEADER, "mine,1,1,5,2.9").rename("small_study_fashion_mnist")
  assert [run.name for run in read_runs(["small_study_fashion_mnist"]).runs] == ["mine"]


def test_paper_a_has_its_networks():
  table = read_runs([PAPER_A_NFNETS, PAPER_A_FINETUNED])
  assert table.compute_column == "compute_core_hours"
  nfnets = [run for run in table.runs if run.loss_nats is not None]
  assert len(nfnets) == 36
  # Sums, so that no figure changes by accident.
  assert sum(run.compute for run in nfnets) == 615_821
  assert sum(run.loss_nats for run in nfnets) == pytest.approx(95.222, abs=1e-6)
  errors_percent = [run.top1_error_percent for run in nfnets if run.top1_error_percent]
  assert sum(errors_percent) == pytest.approx(282.70, abs=1e-6)
  assert len(errors_percent) == 6 + 5 + 5 + 5 + 4
  sizes = {run.name: run.parameters for run in nfnets}
  assert list(sizes) == ["F0", "F1", "F3", "F3+", "F7", "F7+"]
  for name, parameters in sizes.items():
    assert count(name, num_classes=30_000, pixels=224).parameters == parameters
  assert len([run for run in nfnets if run.learning_rate is not None]) == 3 * 6
  others = {run.name: run.top1_error_percent for run in table.runs if run.loss_nats is None}
  assert others == {
    "ViT-g/14": 9.80,
    "SoViT-400m/14": 9.70,
    "ViT-G/14": 9.55,
    "F7+ with repeated augmentation": 9.61,
  }


def test_published_files_say_where_they_come_from():
  for path in (PAPER_A_NFNETS, PAPER_A_FINETUNED):
    assert "https://arxiv.org/abs/2310.16764" in pathlib.Path(path).read_text().splitlines()[0]
