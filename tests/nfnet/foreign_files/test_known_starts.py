import re

import pytest

from nfnet.foreign_files.known_starts import known_mistake


@pytest.mark.parametrize(
  ("content", "words"),
  [
    (b"", "empty: get it again"),
    (
      b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
      "Git LFS pointer .* git lfs pull",
    ),
    (b"\n<!doctype html><p>404", "a web page: download the file again"),
    (b"<HTML>", "a web page"),
    (b"\xff\xd8\xff", None),
    (b"version 2", None),
  ],
)
def test_files_in_the_place_of_others(tmp_path, content, words):
  (tmp_path / "file").write_bytes(content)
  found = known_mistake(tmp_path / "file")
  if words is None:
    assert found is None
  else:
    assert re.search(words, found)
