import os
import pathlib

import pytest

from nfnet.errors import UserError
from nfnet.foreign_files import json_text
from nfnet.foreign_files.json_text import check_structure, parse_json, read_json
from tests.fuzzing import run_bounded

STRUCTURE = {"names": [str], "sizes": {str: {"size": int}}, "pixels?": range(1, 100)}


@pytest.mark.parametrize(
  "value",
  [
    {"names": [], "sizes": {}},
    {"names": ["a"], "sizes": {"x": {"size": 0, "more": None}}, "pixels": 99, "other": []},
  ],
)
def test_what_has_the_structure_passes(value):
  check_structure(value, STRUCTURE)


@pytest.mark.parametrize(
  ("value", "message"),
  [
    ([], "the whole is [], must be an object"),
    (None, "the whole is None, must be an object"),
    ({}, "the whole has no field 'names'"),
    ({"names": "abc", "sizes": {}}, "names is 'abc', must be a list"),
    ({"names": ["a", 1], "sizes": {}}, "names[1] is 1, must be of type str"),
    ({"names": [], "sizes": []}, "sizes is [], must be an object"),
    ({"names": [], "sizes": {"x\n": {}}}, r"sizes.x\n has no field 'size'"),
    ({"names": [], "sizes": {"x": {"size": True}}}, "sizes.x.size is True, must be an integer"),
    ({"names": [], "sizes": {"x": {"size": -1}}}, "sizes.x.size is -1, must be an integer from 0"),
    ({"names": [], "sizes": {"x": {"size": 1.0}}}, "sizes.x.size is 1.0, must be an integer"),
    ({"names": [], "sizes": {"x": {"size": 2**63}}}, f"sizes.x.size is {2**63}, must be"),
    ({"names": [], "sizes": {"x": {"size": 10**4000}}}, "sizes.x.size is an integer of 13288 bits"),
    ({"names": [], "sizes": {}, "pixels": 0}, "pixels is 0, must be an integer from 1 to 99"),
  ],
)
def test_the_first_difference_is_named(value, message):
  with pytest.raises(ValueError) as error:  # noqa: PT011
    check_structure(value, STRUCTURE)
  assert str(error.value).startswith(message)


@pytest.mark.parametrize(
  ("text", "message"),
  [
    (b"", "Expecting value"),
    (b"{", "property name"),
    (b"\xff\xfe", ""),
    (b"\x80", "can't decode"),
    (b"[" * 100_000, "values are nested too deeply"),
    (b'{"a":' * 100_000, "values are nested too deeply"),
    (b"9" * 5000, "Exceeds the limit"),
    (b'{"a": 1, "a": 2}', "the field 'a' is there twice"),
    (b'{"b": {"\\u001b[31m": 1, "\\u001b[31m": 2}}', r"the field '\x1b[31m' is there twice"),
  ],
)
def test_what_is_no_json_is_one_line(text, message, tmp_path):
  with pytest.raises(ValueError) as error:  # noqa: PT011
    parse_json(text)
  assert message in str(error.value)
  path = tmp_path / "file.json"
  path.write_bytes(text)
  with pytest.raises(UserError) as error:
    read_json(path)
  assert str(error.value).startswith(f"{path} is damaged: ")
  assert message in str(error.value)


def test_a_file_that_cannot_be_read_is_one_line(tmp_path, monkeypatch):
  with pytest.raises(UserError, match="cannot be read: No such file"):
    read_json(tmp_path / "missing")
  with pytest.raises(UserError, match="cannot be read: Is a directory"):
    read_json(tmp_path)
  os.mkfifo(tmp_path / "pipe")
  with pytest.raises(UserError, match="cannot be read: not a regular file"):
    read_json(tmp_path / "pipe")
  with pytest.raises(UserError, match="/dev/zero cannot be read: not a regular file"):
    read_json(pathlib.Path("/dev/zero"))
  monkeypatch.setattr(json_text, "FILE_BYTES_MAX", 5)
  (tmp_path / "long").write_text("[1, 2]")
  with pytest.raises(UserError, match="cannot be read: has more than 5 bytes"):
    read_json(tmp_path / "long")


@pytest.mark.slow
def test_the_longest_file_takes_less_than_a_gigabyte(tmp_path):
  path = tmp_path / "file.json"

  def read(content):
    path.write_bytes(content)
    read_json(path, [dict])

  files = [b"[" + part * ((json_text.FILE_BYTES_MAX - 2) // len(part)) for part in (b"{},", b"[],")]
  files.append(b"[" + b",".join(b'{"%07x":[]}' % i for i in range(2_000_000)))
  assert run_bounded(read, files, seconds_max=120) == []
