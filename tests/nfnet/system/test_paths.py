import os
import pathlib

import pytest
from absl import flags

from nfnet.errors import UserError
from nfnet.system.paths import (
  as_path,
  check_writable,
  define_path,
  local_path,
  open_to_write,
  path_or_bucket,
)


@pytest.mark.parametrize(
  ("path", "expected"),
  [
    ("~", "/home/me"),
    ("~/data", "/home/me/data"),
    ("~root/data", os.path.expanduser("~root/data")),
    ("data/~", "data/~"),
    ("./~/data", "./~/data"),
    ("run:1/data", "run:1/data"),
    ("c:/data", "c:/data"),
    ("a b;c$(d)", "a b;c$(d)"),
    ("/données", "/données"),
  ],
)
def test_a_home_folder_is_expanded_and_nothing_else(monkeypatch, path, expected):
  monkeypatch.setenv("HOME", "/home/me")
  assert local_path("--out", path) == expected


@pytest.mark.parametrize(
  ("path", "reason"),
  [
    ("gs://bucket/run", "gcsfuse --implicit-dirs bucket DIR` and give DIR/run$"),
    ("gs://bucket", "gcsfuse --implicit-dirs bucket DIR` and give DIR/$"),
    ("s3://bucket/run", "gs://BUCKET/PATH is supported"),
    ("GS://bucket/run", "gs://BUCKET/PATH is supported"),
    ("gs:/bucket/run", "gs://BUCKET/PATH is supported"),
    ("file:///tmp/run", "gs://BUCKET/PATH is supported"),
    ("hf://models/run", "gs://BUCKET/PATH is supported"),
    ("https://host/run", "gs://BUCKET/PATH is supported"),
    ("a+b-c.d2://x", "gs://BUCKET/PATH is supported"),
    ("~no_such_user/run", "no home folder"),
    ("", "names no path"),
    *((f"a{character}b", "control character") for character in "\0\n\r\t\x1b\x7f\x9b"),
    *((f"a{character}b", "a line end") for character in "\u2028\u2029"),
    ("a\udcffb", "not UTF-8"),
  ],
)
def test_what_is_no_path_of_this_machine_is_one_line(path, reason):
  with pytest.raises(UserError, match=reason) as error:
    local_path("--out", path)
  assert str(error.value).startswith("--out=")
  assert str(error.value).isprintable()


@pytest.mark.parametrize(
  ("path", "expected"),
  [
    ("gs://bucket", "gs://bucket"),
    ("gs://bucket/", "gs://bucket"),
    ("gs://bucket.of.mine/a//b c/~/", "gs://bucket.of.mine/a/b c/~"),
    ("/a", "/a"),
  ],
)
def test_a_path_in_a_bucket_has_one_spelling(path, expected):
  assert path_or_bucket("--out", path) == expected
  assert str(as_path(expected)) == expected


@pytest.mark.parametrize(
  "path", ["gs://", "gs:///x", "gs://A_B!/x", "gs://b/x", "gs://bucket/a/../b"]
)
def test_what_is_not_a_path_in_a_bucket_is_one_line(path):
  cure = "without . and ..$" if ".." in path else "have 3 to 63 characters, .*: lowercase letters"
  refused = f"--out={path} is not a path in a bucket"
  with pytest.raises(UserError, match=f"^{refused}; write gs://.*{cure}"):
    path_or_bucket("--out", path)


def test_results_are_written_into_a_bucket(gcs):
  check_writable("--json", f"{gcs.url}/new/folder", "write folder")
  assert not gcs.names()
  with open_to_write("json", f"{gcs.url}/new/file.json") as file:
    file.write(b"a")
    file.write(b"b")
  assert gcs.read("new/file.json") == b"ab"


def test_a_bucket_that_cannot_be_written_is_one_line(gcs):
  gcs.refuse(403)
  reason = "^--json=.* cannot be written: .*gcloud auth application-default login"
  with pytest.raises(UserError, match=reason):
    check_writable("--json", f"{gcs.url}/file", "write file")
  with pytest.raises(UserError, match=reason), open_to_write("json", f"{gcs.url}/file") as file:
    file.write(b"a")


def test_what_can_be_written_is_left_as_it_was(tmp_path):
  (tmp_path / "file").write_text("content")
  for path in ("file", "new", "new/folders/file"):
    check_writable("--json", str(tmp_path / path), "write file")
  for path in ("", "new", "new/folders/"):
    check_writable("--out", f"{tmp_path}/{path}", "write folder")
  check_writable("--json", "/dev/null", "write file")
  assert [path.name for path in tmp_path.iterdir()] == ["file"]
  assert (tmp_path / "file").read_text() == "content"


@pytest.mark.parametrize(
  ("path", "use", "reason"),
  [
    ("folder", "write file", "is a folder"),
    ("new/", "write file", "is a folder"),
    ("file", "write folder", "is a file"),
    ("file/new", "write file", "file is not a folder"),
    ("file/new/new", "write folder", "file is not a folder"),
    ("loop", "write file", "Too many levels"),
    ("loop/new", "write folder", "Too many levels"),
    ("n" * 300, "write file", "File name too long"),
    ("/proc/new", "write folder", "cannot be written"),
    ("/proc/new/new", "write file", "cannot be written"),
    ("/dev/null/new", "write file", "not a folder"),
  ],
)
def test_what_cannot_be_written_is_one_line(tmp_path, path, use, reason):
  (tmp_path / "folder").mkdir()
  (tmp_path / "file").touch()
  (tmp_path / "loop").symlink_to(tmp_path / "loop")
  with pytest.raises(UserError, match=reason) as error:
    check_writable("--out", str(tmp_path / path) + ("/" if path.endswith("/") else ""), use)
  assert str(error.value).startswith("--out=/")


def test_a_link_that_leads_nowhere_is_named_with_the_cure(tmp_path):
  (tmp_path / "link").symlink_to("away")
  for path, use in (
    ("link", "write folder"),
    ("link/new", "write folder"),
    ("link/x", "write file"),
  ):
    with pytest.raises(UserError, match="link is a link to away, which is not there; create"):
      check_writable("--out", str(tmp_path / path), use)
  # The file is created where the link leads.
  check_writable("--json", str(tmp_path / "link"), "write file")


def test_a_folder_without_permission(tmp_path, monkeypatch):
  """Root may write anywhere, so the system's answer is given in its place."""

  def refuse(**unused_options):
    raise PermissionError(13, "Permission denied")

  monkeypatch.setattr("tempfile.TemporaryFile", refuse)
  for use in ("write file", "write folder"):
    with pytest.raises(UserError, match="cannot be written: Permission denied; give another path"):
      check_writable("--out", str(tmp_path / "new"), use)


def test_a_pipe_that_nobody_reads_is_not_waited_for(tmp_path):
  os.mkfifo(tmp_path / "pipe")
  check_writable("--json", str(tmp_path / "pipe"), "write file")


@pytest.fixture
def parse():
  """Returns a function that parses arguments and returns the values of the flags below."""
  values = flags.FLAGS
  define_path("test_input", "~/default", "An input.", use="read")
  define_path("test_inputs", None, "Several inputs.", use="read", multiple=True)
  define_path("test_file", None, "A file.", use="write file")
  define_path("test_folder", None, "A folder.", use="write folder")
  define_path("test_image", None, "A PNG file.", use="write file", suffix=".png")
  names = ("test_input", "test_inputs", "test_file", "test_folder", "test_image")

  def parse(*arguments):
    values(["program", *arguments])
    return {name: values[name].value for name in names}

  yield parse
  for name in names:
    delattr(values, name)
  values.unparse_flags()


def test_flags_are_expanded(parse, monkeypatch, tmp_path):
  assert parse()["test_input"] == str(pathlib.Path("~/default").expanduser())
  monkeypatch.setenv("HOME", str(tmp_path))
  found = parse("--test_input=~/a", "--test_inputs=~/b", "--test_inputs=c", "--test_file=~/d/e")
  assert found == {
    "test_input": f"{tmp_path}/a",
    "test_inputs": [f"{tmp_path}/b", "c"],
    "test_file": f"{tmp_path}/d/e",
    "test_folder": None,
    "test_image": None,
  }


def test_a_file_has_the_extension_of_what_is_written(parse, tmp_path):
  for name in ("a.jpg", "png", "b"):
    with pytest.raises(UserError, match=rf"--test_image=.*{name} is written as PNG; .* in \.png$"):
      parse(f"--test_image={tmp_path / name}")
  with pytest.raises(UserError, match="is written as PNG"):
    parse("--test_image=gs://bucket/a.jpg")
  assert parse(f"--test_image={tmp_path / 'a.PNG'}")["test_image"] == str(tmp_path / "a.PNG")
  # What it has as a name says nothing of what is written there.
  assert parse("--test_image=/dev/null")["test_image"] == "/dev/null"


@pytest.mark.parametrize(
  "argument",
  [
    "--test_input=gs://bucket/x",
    "--test_inputs=a\nb",
    "--test_file=/",
    "--test_file=s3:/x",
    "--test_file=gs://bucket",
    "--test_file=gs://bucket/folder/",
    "--test_folder=gs://bucket/x",
    "--test_folder=/dev/null",
    "--test_folder=",
  ],
)
def test_flags_are_refused_before_the_work(parse, argument):
  with pytest.raises(UserError, match=f"^{argument.partition('=')[0]}=") as error:
    parse(argument)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("other", ["--test_input", "--test_second"])
def test_a_file_that_is_written_is_that_of_no_other_flag(parse, tmp_path, other):
  define_path("test_second", None, "Another file.", use="write file")
  try:
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with pytest.raises(UserError, match=r"is the file of --test_.*, too; give another path"):
      parse(f"--test_file={tmp_path}/a", f"{other}={tmp_path}/link")
    parse(f"--test_file={tmp_path}/a", f"{other}={tmp_path}/b")
    parse("--test_file=/dev/null", f"{other}=/dev/null")
  finally:
    delattr(flags.FLAGS, "test_second")
