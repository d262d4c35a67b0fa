import io
import random
import tarfile

import pytest

from nfnet.errors import UserError
from tests import fuzzing
from tests.train.data.sources import miniatures
from train.data.sources.tars.tar_files import CUT_OFF, read_members

MEMBERS = [("a.jpg", b"a" * 700), ("folder/" + "b" * 120 + ".jpg", b"b" * 10), ("c.jpg", b"")]
WHOLE = miniatures.tar_bytes(MEMBERS)


def listed(content, **place):
  return list(read_members(io.BytesIO(content), **place))


def test_members_are_where_they_are_said_to_be():
  found = listed(WHOLE)
  assert [(m.name, WHOLE[m.offset : m.offset + m.size_bytes]) for m in found] == MEMBERS
  # As a member of another file, whose other bytes are not part of it.
  inside = b"x" * 512 + WHOLE + b"y" * 512
  assert [m.name for m in listed(inside, start=512, size_bytes=len(WHOLE))] == [
    name for name, _ in MEMBERS
  ]


@pytest.mark.parametrize(
  ("kept_bytes", "names", "problem"),
  [
    (512 + 300, ["a.jpg"], CUT_OFF),
    (512 + 1024, ["a.jpg"], ""),
    (512 + 1024 + 100, ["a.jpg"], ""),
    (512, ["a.jpg"], CUT_OFF),
  ],
)
def test_what_is_left_of_a_file_that_is_cut_off(kept_bytes, names, problem):
  *found, end = listed(WHOLE[:kept_bytes])
  assert [member.name for member in found] == names
  assert found[-1].problem == problem
  assert not end.name
  assert end.problem.startswith("damaged after ")


def test_a_damaged_header_is_no_end():
  content = bytearray(WHOLE)
  content[512 + 1024 + 10] ^= 1
  *found, end = listed(bytes(content))
  assert [member.name for member in found] == ["a.jpg"]
  assert end.problem == "damaged after 1,536 bytes (_DamagedError: a header is damaged)"


def test_members_that_are_no_images_by_themselves():
  content = io.BytesIO()
  with tarfile.open(fileobj=content, mode="w") as archive:
    for name, kind in (("link", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE), ("pipe", b"6")):
      member = tarfile.TarInfo(name)
      member.type, member.linkname = kind, "/etc/passwd"
      archive.addfile(member)
    folder = tarfile.TarInfo("folder")
    folder.type = tarfile.DIRTYPE
    archive.addfile(folder)
    for _ in range(2):
      archive.addfile(tarfile.TarInfo("../../twice"))
  found = listed(content.getvalue())
  assert [member.name for member in found] == ["link", "hard", "pipe", "../../twice", "../../twice"]
  assert [bool(member.problem) for member in found] == [True, True, True, False, True]
  assert found[4].is_repeated
  assert len({member.unique_name for member in found}) == 5


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"", "not a tar file"),
    (b"<!doctype html>" * 100, "not a tar file"),
    (b"\x1f\x8b" + bytes(1000), "compressed, so nothing in it can be found: run gzip -d"),
  ],
)
def test_files_that_are_no_archives(content, message):
  with pytest.raises(UserError, match=message):
    listed(content)


def test_a_header_does_not_take_memory_or_go_backwards():
  member = tarfile.TarInfo("x" * 10)
  member.size = 2**40
  member.type = tarfile.GNUTYPE_LONGNAME
  header = member.tobuf(tarfile.GNU_FORMAT)
  *_, end = listed(WHOLE[: 512 + 1024] + header + bytes(2048))
  assert "a header asks for 1,099,511,627,776 bytes" in end.problem
  member = tarfile.TarInfo("backwards")
  buffer = bytearray(member.tobuf(tarfile.GNU_FORMAT))
  buffer[124:136] = (2**96 - 1024).to_bytes(12, "big")
  buffer[148:156] = b" " * 8
  buffer[148:156] = f"{sum(buffer):06o}\0 ".encode()
  *_, end = listed(WHOLE[: 512 + 1024] + bytes(buffer) + bytes(2048))
  assert not end.name


@pytest.mark.parametrize("count", [200, pytest.param(20_000, marks=pytest.mark.slow)])
def test_mutations(count):
  pax = io.BytesIO()
  with tarfile.open(fileobj=pax, mode="w", format=tarfile.PAX_FORMAT) as archive:
    member = tarfile.TarInfo("ü" * 200)
    member.size = 3
    archive.addfile(member, io.BytesIO(b"abc"))
  mutations = fuzzing.mutations([WHOLE, pax.getvalue()], random.Random(0))

  def read(content):
    for member in listed(content):
      assert member.problem or member.offset + member.size_bytes <= len(content)

  findings = fuzzing.run_bounded(read, [next(mutations) for _ in range(count)])
  assert not findings, fuzzing.describe(findings)
