"""A sweep goes on beside what is damaged in its folder, and what is not of it."""

import dataclasses
import io
import json
import os
import random
import resource

import pytest

from nfnet.errors import UserError
from tests import fuzzing
from tests.train.sweep.trials import FIXED, make_trial, state
from train.sweep.claim import claim_trial
from train.sweep.finetuning import run_once
from train.sweep.folder import DONE, FAILED, STATES, WAITING, SweepFolder, open_log
from train.sweep.plan import load_plan
from train.sweep.results import finished_trials, results, write_results
from train.sweep.trial_table import LiveTable, table_rows, table_text

GOOD, BAD = make_trial(0.1), make_trial(0.2)
DEFINITION = dataclasses.asdict(BAD)


def put_folder(path):
  path.unlink()
  path.mkdir()


def put_pipe(path):
  path.unlink()
  os.mkfifo(path)


def put(content):
  return lambda path: path.write_bytes(content)


def put_fields(**changes):
  return put(json.dumps(DEFINITION | changes).encode())


DAMAGES = {
  "empty": (put(b""), "is empty"),
  "cut": (put(json.dumps(DEFINITION).encode()[:40]), "is not JSON"),
  "binary": (put(bytes(range(256))), "is not JSON"),
  "zeros, as after a power failure": (put(bytes(300)), "is not JSON"),
  "nested": (put(b"[" * 100_000), "is not JSON"),
  "huge number": (put(b'{"steps": ' + b"9" * 5000 + b"}"), "is not JSON"),
  "list": (put(b"[]"), "is not a JSON object"),
  "too large": (put(b" " * (2**20 + 1)), "has more than 1,048,576 bytes"),
  "missing": (lambda path: path.unlink(), "cannot be read: No such file or directory"),
  "folder": (put_folder, "cannot be read: Is a directory"),
  "pipe": (put_pipe, "cannot be read: not a regular file"),
  "link to itself": (lambda path: (path.unlink(), path.symlink_to(path)), "symbolic links"),
  "further field": (put_fields(more=1), "does not have the fields of a trial"),
  "text for a number": (put_fields(steps="10"), "has a wrong steps"),
  "number for a text": (put_fields(variant=0), "has a wrong variant"),
  "NaN": (put_fields(epochs=float("nan")), "has a wrong epochs"),
  "infinite": (put_fields(learning_rate=float("inf")), "has a wrong learning_rate"),
  "negative": (put_fields(compute_flops=-1), "has a wrong compute_flops"),
  "escape sequence": (put_fields(variant="\x1b[2J"), "has a wrong variant"),
  "long text": (put_fields(variant="x" * 201), "has a wrong variant"),
  "null": (put_fields(parameters=None), "has a wrong parameters"),
  "true": (put_fields(images=True), "has a wrong images"),
  "another trial's": (put_fields(name="other"), "is of another trial"),
}


def look_at(folder):
  """Does all that a worker and `--show` do with a folder besides running trials."""
  entries = folder.entries()
  stream = io.StringIO()
  LiveTable(stream=stream).update(folder, entries)
  rows = results(folder, entries)
  table = table_text(table_rows(folder, entries, rows))
  write_results(folder, entries, rows)
  results(folder, entries)
  finished_trials(folder, entries.values())
  assert GOOD.name in table
  return entries


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_definition_is_ignored_counted_and_written_anew(folder, damage):
  spoil, reason = DAMAGES[damage]
  folder.add(GOOD)
  folder.add(BAD)
  spoil(folder.trial_folder(BAD.name) / "trial.json")
  other = SweepFolder(folder.path)
  assert set(look_at(other)) == {GOOD.name}
  assert list(other.ignored) == [f"trials/{BAD.name}"]
  text = other.ignored_text()
  assert text.startswith("ignored 1 in sweep folder ")
  assert f"'trials/{BAD.name}' (trial.json {reason}" in text or reason in text
  assert "\n" not in text
  # The plan of a worker has the definition.
  assert not other.add(BAD)
  is_a_folder = (folder.trial_folder(BAD.name) / "trial.json").is_dir()
  assert set(look_at(SweepFolder(folder.path))) == (
    {GOOD.name} if is_a_folder else {GOOD.name, BAD.name}
  )
  assert not list(folder.path.rglob(".*"))


def test_a_definition_that_is_written_anew_keeps_the_state_of_its_trial(folder):
  folder.add(BAD)
  claim_trial(folder, folder.entries()[BAD.name], "host.1.2").move(FAILED, {"diverged": True})
  (folder.trial_folder(BAD.name) / "trial.json").write_text("")
  other = SweepFolder(folder.path)
  other.add(BAD)
  assert state(other, BAD) == FAILED
  assert other.entries()[BAD.name].read() == {"diverged": True}


def test_an_empty_folder_in_the_place_of_a_trial_becomes_the_trial(folder):
  folder.trial_folder(BAD.name).mkdir()
  assert not folder.add(BAD)
  assert state(folder, BAD) == WAITING
  assert folder.trial(BAD.name) == BAD


def test_a_file_in_the_place_of_a_trial_leaves_it_out(folder):
  folder.trial_folder(BAD.name).write_text("")
  assert not folder.add(BAD)
  folder.add(GOOD)
  assert set(look_at(folder)) == {GOOD.name}
  assert (
    f"'trials/{BAD.name}' (trial.json cannot be read: Not a directory)" in folder.ignored_text()
  )


@pytest.mark.parametrize("target", ["nowhere", BAD.name])
def test_a_link_to_nothing_in_the_place_of_a_trial_leaves_it_out(folder, target):
  folder.trial_folder(BAD.name).symlink_to(target)
  assert not folder.add(BAD)
  folder.add(GOOD)
  assert set(look_at(folder)) == {GOOD.name}
  assert list(folder.ignored) == [f"trials/{BAD.name}"]
  assert not list(folder.path.rglob(".*"))


def test_a_folder_in_the_place_of_an_entry_leaves_its_trial_out(folder):
  place = folder.path / WAITING / BAD.name
  place.mkdir()
  folder.add(BAD)
  folder.add(GOOD)
  assert set(look_at(folder)) == {GOOD.name}
  assert folder.ignored == {f"waiting/{BAD.name}": "not a file"}
  place.rmdir()
  assert state(folder, BAD) == WAITING


@pytest.mark.parametrize("name", [*STATES, "trials"])
@pytest.mark.parametrize("put", [lambda p: p.write_text(""), lambda p: p.symlink_to(p)])
def test_a_folder_that_cannot_be_listed_is_one_line(folder, name, put):
  place = folder.path / name
  place.rmdir()
  put(place)
  with pytest.raises(UserError, match=f"/{name}' cannot be listed: "):
    folder.entries()


@pytest.mark.parametrize(
  "put", [lambda p: p.mkdir(), os.mkfifo, lambda p: p.symlink_to(p), lambda p: p.symlink_to("/")]
)
def test_what_has_the_place_of_a_log_stays_there(tmp_path, put):
  path = tmp_path / "log.txt"
  put(path)
  before = path.lstat()
  with open_log(path) as log:
    log.write(b"lost")
  assert path.lstat() == before


def test_a_folder_in_the_place_of_the_results_is_named(folder):
  (folder.path / "results.csv").mkdir()
  with pytest.raises(UserError, match=r"/results\.csv' is in the way \(Is a directory\)"):
    write_results(folder, {}, [])
  assert not list(folder.path.rglob(".*"))


def test_a_log_that_could_not_be_written_is_closed_without_an_error(tmp_path):
  with open_log(tmp_path / "log.txt") as log:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
      assert log.write(b"as on a full disk") == 10
      with pytest.raises(OSError, match="too large"):
        log.write(b"as on a full disk")
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, limits)


STRAYS = (
  *("trials/notes.txt", "waiting/readme", "running/notes", "done/a@b", "failed/x\x1b[31m"),
  *("waiting/F0~", "done/P0_epochs-0.5_rate-0.1.bak", "running/P0_epochs-0.5_rate-0.1"),
)


@pytest.mark.parametrize(
  "make",
  [
    lambda p: p.write_bytes(b"\xff"),
    lambda p: p.mkdir(),
    os.mkfifo,
    lambda p: p.symlink_to(p),
    lambda p: p.symlink_to("../plan.json/inside a file"),
    lambda p: p.symlink_to("x" * 300),
  ],
)
def test_strays_are_ignored_and_counted(folder, make):
  folder.add(GOOD)
  for stray in STRAYS:
    make(folder.path / stray)
  for harmless in ("notes.txt", "waiting/.DS_Store", "trials/.nfs0001"):
    make(folder.path / harmless)
  other = SweepFolder(folder.path)
  assert set(look_at(other)) == {GOOD.name}
  assert state(other, GOOD) == WAITING
  assert set(other.ignored) == set(STRAYS)
  text = other.ignored_text()
  assert text.startswith(f"ignored {len(STRAYS)} in sweep folder ")
  assert text.endswith("and 3 more")
  assert text.isprintable()
  assert other.retry_failed() == []


def test_a_copy_of_a_trial_is_not_a_trial(folder):
  folder.add(GOOD)
  copied = folder.path / "trials" / f"{GOOD.name}.bak"
  copied.mkdir()
  (copied / "trial.json").write_bytes((folder.trial_folder(GOOD.name) / "trial.json").read_bytes())
  (copied / "entry").write_text("{}")
  assert set(look_at(folder)) == {GOOD.name}
  assert "is of another trial" in folder.ignored_text()


RESULT = {
  "trial": BAD.name,
  "name": "P0",
  "parameters": 1000,
  "epochs": 0.5,
  "learning_rate": 0.2,
  "compute_flops": 10**9,
  "loss_nats": 1.5,
  "held_out_error_percent": 50.0,
}
GARBLED_RESULTS = {
  "empty": b"",
  "cut": json.dumps(RESULT).encode()[:-30],
  "list": b"[1]",
  "binary": bytes(range(256)),
  "no columns": b"{}",
  "a column less": json.dumps({**RESULT, "loss_nats": None}).encode(),
  "text for a number": json.dumps({**RESULT, "held_out_error_percent": "50"}).encode(),
  "NaN": json.dumps({**RESULT, "loss_nats": float("nan")}).encode(),
  "nested": b"[" * 100_000,
  "another trial's": json.dumps({**RESULT, "trial": GOOD.name, "learning_rate": 0.1}).encode(),
  "another network's": json.dumps({**RESULT, "name": "\x1b[2J\n"}).encode(),
}


@pytest.mark.parametrize("damage", GARBLED_RESULTS)
def test_a_garbled_result_is_read_from_the_run_or_ignored(folder, damage):
  folder.add(GOOD)
  folder.add(BAD)
  claim_trial(folder, folder.entries()[BAD.name], "host.1.2").move(DONE, RESULT)
  assert results(folder, folder.entries()) == [RESULT]
  (folder.path / DONE / BAD.name).write_bytes(GARBLED_RESULTS[damage])
  assert set(look_at(folder)) == {GOOD.name, BAD.name}
  assert results(folder, folder.entries()) == []
  assert f"'done/{BAD.name}' (not a result" in folder.ignored_text()
  workdir = folder.workdir(BAD.name)
  workdir.mkdir()
  record = {"step": 10, "kind": "evaluation", "loss": 1.5, "top1": 0.5, "ema": True}
  (workdir / "metrics.jsonl").write_text(json.dumps(record) + "\n")
  assert results(folder, folder.entries()) == [RESULT]
  assert [one.loss for one in finished_trials(folder, folder.entries().values())] == [1.5]


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[]", b"{", b"[" * 100_000, b'"a"', b"7"])
def test_a_garbled_plan_of_the_folder_is_one_line(folder, content):
  (folder.path / "plan.json").write_bytes(content)
  with pytest.raises(UserError, match=r"plan\.json' is damaged: is (empty|not .*); give another"):
    folder.create(FIXED)


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"\xff\xfe", "not TOML"),
    (b"a = " + b"[" * 100_000, "not TOML"),
    (b"a = " + b"9" * 5000, "not TOML"),
    (b"\0", "not TOML"),
    (b" " * (2**20 + 1), "has more than 1,048,576 bytes"),
    (
      b'config = "a"\nvariants = ["F0"]\nepochs = [1' + b"0" * 400 + b"]\nlearning_rates = [1]",
      "epochs has 1",
    ),
    (
      b'config = "a"\nvariants = ["F0"]\nlearning_rates = [1]\nepochs = ['
      + b",".join(b"%d" % number for number in range(1, 20_000))
      + b"]",
      "19,999 trials, where 10,000 are the most",
    ),
  ],
)
def test_a_garbled_plan_file_is_one_line(tmp_path, content, message):
  path = tmp_path / "plan.toml"
  path.write_bytes(content)
  with pytest.raises(UserError, match=message) as raised:
    load_plan(str(path))
  assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
  "content",
  [
    *(b"", b"[]", b"\xff", b'{"asked": 1}', b'{"asked": {"a": 1}}'),
    b'{"asked": {"a": 1}, "found": {}}',
    b'{"asked": {"a": 1}, "found": {"other": 1.0}}',
    b'{"asked": {"a": 1}, "found": {"found": "1.0"}}',
    b'{"asked": {"a": 1}, "found": {"found": NaN}}',
    b'{"asked": {"a": 1}, "found": {"found": 1.0, "other": 1.0}}',
  ],
)
def test_a_garbled_note_of_a_finetuning_is_as_good_as_none(tmp_path, content):
  path = tmp_path / "result.json"
  path.write_bytes(content)
  for value in (2.0, 3.0):
    found = run_once(path, {"a": 1}, ("found",), lambda value=value: {"found": value})
    assert found == {"found": 2.0}


def _fuzz(tmp_path, count):
  folder = SweepFolder(tmp_path / "sweep")
  folder.create(FIXED)
  folder.add(GOOD)
  folder.add(BAD)
  claim_trial(folder, folder.entries()[BAD.name], "host.1.2").move(DONE, RESULT)
  definition = folder.trial_folder(BAD.name) / "trial.json"
  result = folder.path / DONE / BAD.name
  seeds = [definition.read_bytes(), result.read_bytes()]

  def read(content):
    for path in (definition, result):
      path.write_bytes(content)
      look_at(SweepFolder(folder.path))
      path.write_bytes(seeds[path is result])

  rng = random.Random(0)
  mutations = fuzzing.mutations(seeds, rng)
  findings = fuzzing.run_bounded(read, [next(mutations) for _ in range(count)])
  assert not findings, fuzzing.describe(findings)


def test_mutated_definitions_and_results(tmp_path):
  _fuzz(tmp_path, 50)


@pytest.mark.slow
def test_ten_thousand_mutated_definitions_and_results(tmp_path):
  _fuzz(tmp_path, 10_000)
