"""Checks that files from the network are read if they hold arrays, and otherwise not executed."""

import copyreg
import os
import pathlib
import pickle
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfnet.errors import UserError
from nfnet.weights import pickle_records
from nfnet.weights.haiku_pickle import read_haiku, write_haiku
from tests.fuzzing import run_bounded

TREE = {
  "net/~/conv": {
    "w": np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4),
    "fortran": np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
    "permuted": np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(1, 2, 0),
    "big_endian": np.arange(3, dtype=">f4"),
    "scalar": np.float32(0.25),
    "zero_dimensional": np.array(0.5, np.float32),
  },
  "net": {"steps": np.array([1, 2], np.int64)},
}


@pytest.fixture
def path(tmp_path):
  return str(tmp_path / "weights.npz")


def write(path, content):
  pathlib.Path(path).write_bytes(content)


def assert_is_tree(tree):
  assert tree.keys() == TREE.keys()
  for module, leaves in TREE.items():
    assert tree[module].keys() == leaves.keys()
    for leaf, expected in leaves.items():
      np.testing.assert_array_equal(tree[module][leaf], expected)
      # NumPy itself converts a foreign byte order to the machine's own.
      assert tree[module][leaf].dtype.newbyteorder("=") == expected.dtype.newbyteorder("=")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("numpy_1_names", [False, True])
def test_every_pickle_protocol_is_read(path, protocol, numpy_1_names):
  content = pickle.dumps(TREE, protocol=protocol)
  if numpy_1_names:
    new, old = b"numpy._core.", b"numpy.core."
    if protocol >= 4:  # Frames say how long they are, and names too.
      content = pickle.dumps(TREE, protocol=3).replace(new, old)
    content = content.replace(new, old)
  write(path, content)
  assert_is_tree(read_haiku(path))


def test_arrays_as_dill_writes_them(path):
  write(path, _dill_file())
  np.testing.assert_array_equal(read_haiku(path)["m"]["w"], np.arange(3, dtype=np.float32))


def _dill_file():
  """Returns what dill 0.4 writes: a call of its own function with the array's parts."""
  array = np.arange(3, dtype=np.float32)
  function, arguments, state = array.__reduce__()
  parts = pickle.dumps((function, arguments, state, None), protocol=3)
  # {"m": {"w": dill._dill._create_array(*parts)}}
  return (
    b"\x80\x03}X\x01\x00\x00\x00m}X\x01\x00\x00\x00wcdill._dill\n_create_array\n"
    + parts[2:-1]
    + b"Rss."
  )


def test_what_is_written_is_read_by_plain_pickle(path):
  write_haiku(path, TREE)
  with open(path, "rb") as file:
    assert_is_tree(pickle.load(file))
  assert_is_tree(read_haiku(path))


class Touch:
  """Creates a file when it is unpickled by anything that obeys."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return pathlib.Path.touch, (pathlib.Path(self.path),)


class RunCommand(Touch):
  def __reduce__(self):
    return os.system, (f"touch {self.path}",)


class Evaluate(Touch):
  def __reduce__(self):
    return eval, (f"__import__('pathlib').Path({self.path!r}).touch()",)


class LoadAgain(Touch):
  """numpy.load with allow_pickle would unpickle a second file."""

  def __reduce__(self):
    second = f"{self.path}.npy"
    np.save(second, np.array([RunCommand(self.path)], object), allow_pickle=True)
    return np.load, (second, None, True)


HARMFUL = (Touch, RunCommand, Evaluate, LoadAgain)
# Places in the tree for the harmful object.
WRAPPERS = {
  "alone": lambda harm: harm,
  "leaf": lambda harm: {"m": {"w": harm}},
  "beside": lambda harm: {"m": {"w": np.ones(2), "x": [(harm,)]}},
  "object array": lambda harm: {"m": {"w": np.array([harm], object)}},
  "record": lambda harm: {"m": {"w": np.array([(1, harm)], [("a", "i4"), ("b", "O")])}},
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("harmful", HARMFUL)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_nothing_of_a_harmful_file_runs(path, tmp_path, protocol, harmful, wrapper):
  trace = tmp_path / "trace"
  write(path, pickle.dumps(WRAPPERS[wrapper](harmful(str(trace))), protocol=protocol))
  with pytest.raises(UserError, match=r"weights '.*' are refused: it names \w") as refused:
    read_haiku(path)
  assert "\n" not in str(refused.value)
  assert not trace.exists()
  # The file is not harmless: plain pickle obeys it.
  with open(path, "rb") as file:
    pickle.load(file)
  assert trace.exists()


def short_text(text):
  return b"\x8c" + bytes([len(text)]) + text.encode()


HAND_WRITTEN = {
  "GLOBAL": b"cos\nsystem\n(S'true'\ntR.",
  "STACK_GLOBAL": b"\x80\x04"
  + short_text("os")
  + short_text("system")
  + b"\x93"
  + short_text("true")
  + b"\x85R.",
  "INST": b"(S'true'\nios\nsystem\n.",
  "OBJ": b"(cos\nsystem\nS'true'\no.",
  "NEWOBJ": b"\x80\x02cos\nsystem\n(S'true'\nt\x81.",
  "dotted name": b"\x80\x04" + short_text("numpy") + short_text("ndarray.__class__") + b"\x93.",
  "other of numpy": b"cnumpy\nload\n(S'x'\ntR.",
  "other of dill": b"cdill._dill\n_import_module\n(S'os'\ntR.",
  "builtins": b"c__builtin__\neval\n(S'1'\ntR.",
  "getattr": b"cbuiltins\ngetattr\n(cnumpy\ndtype\nS'mro'\ntR.",
  "codecs": b"c_codecs\ndecode\n(S'x'\ntR.",
}


@pytest.mark.parametrize("kind", HAND_WRITTEN)
def test_every_way_to_name_something_is_refused(path, kind):
  write(path, HAND_WRITTEN[kind])
  with pytest.raises(UserError, match="refused: it names"):
    read_haiku(path)


def test_an_extension_code_is_refused(path):
  """Opcode EXT1 is a number for a name that this process registered earlier."""
  write(path, b"\x80\x02\x82\xc8(X" + struct.pack("<I", 4) + b"truetR.")
  copyreg.add_extension("os", "system", 200)
  try:
    with pytest.raises(UserError, match="refused: it uses the opcode EXT1"):
      read_haiku(path)
  finally:
    copyreg.remove_extension("os", "system", 200)


@pytest.mark.parametrize("content", [b"Psomething\n.", b"\x80\x02X\x01\x00\x00\x00iQ."])
def test_a_persistent_id_is_refused(path, content):
  write(path, content)
  with pytest.raises(UserError, match="refused: it refers to an external object"):
    read_haiku(path)


# The opcode BUILD sets attributes of the classes that replace NumPy's.
@pytest.mark.parametrize(
  "name",
  [
    *("numpy\ndtype", "numpy\nndarray", "numpy._core.multiarray\n_reconstruct", "_codecs\nencode"),
    *("numpy._core.multiarray\nscalar", "numpy.core.numeric\n_frombuffer"),
  ],
)
def test_a_file_cannot_change_how_the_next_one_is_read(path, name):
  write(path, b"\x80\x02c" + name.encode() + b"\n" + b"N}X\x07\x00\x00\x00__new__Ns\x86b.")
  with pytest.raises(UserError):
    read_haiku(path)
  write_haiku(path, TREE)
  assert_is_tree(read_haiku(path))


@pytest.mark.parametrize(
  ("array", "message"),
  [
    (np.array([1, "a"], object), "not numbers"),
    (np.array(["a"]), "not numbers"),
    (np.array([b"a"]), "not numbers"),
    (np.array(["2020-01-01"], "M8[D]"), "not numbers"),
    (np.array([1j]), "not numbers"),
    (np.array([(1, 2.0)], [("a", "i4"), ("b", "f4")]), "not numbers"),
  ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_arrays_of_anything_but_numbers_are_refused(path, array, message, protocol):
  write(path, pickle.dumps({"m": {"w": array}}, protocol=protocol))
  with pytest.raises(UserError, match=f"m/w is not a valid array: .*{message}"):
    read_haiku(path)


def test_a_wrong_length_is_an_error(path):
  content = pickle.dumps({"m": {"w": np.zeros(3, np.float32)}}, protocol=2)
  write(path, content.replace(b"K\x03\x85", b"M\xff\x7f\x85"))
  with pytest.raises(UserError, match="12 bytes where"):
    read_haiku(path)


@pytest.mark.parametrize(
  ("tree", "message"),
  [
    ([np.zeros(3)], "hold a list"),
    ({"m": np.zeros(3)}, "'m' holds an array"),
    ({"m": {"w": 3.5}}, "m/w is a float"),
    ({"m": {"w": [np.zeros(3)]}}, "m/w is a list"),
    ({"m": {3: np.zeros(3)}}, "m/3"),
    ({3: {"w": np.zeros(3)}}, "3 holds"),
    ("text", "hold a str"),
  ],
)
def test_another_structure_is_an_error(path, tree, message):
  write(path, pickle.dumps(tree))
  with pytest.raises(UserError, match=message):
    read_haiku(path)


@pytest.mark.parametrize(
  "content", [b"", b"\x80", b"\xff" * 100, b"version https://git-lfs.github.com/spec/v1\n", b"{}"]
)
def test_what_is_no_pickle_is_an_error(path, content):
  write(path, content)
  with pytest.raises(UserError, match="neither a haiku pickle nor a safetensors file"):
    read_haiku(path)


def test_a_real_npz_archive_is_an_error(path):
  np.savez(path, w=np.zeros(3))
  with pytest.raises(UserError, match="neither a haiku pickle"):
    read_haiku(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_file_cut_short_is_an_error(path, share):
  content = pickle.dumps(TREE, protocol=4)
  write(path, content[: int(share * len(content))])
  with pytest.raises(UserError, match="damaged"):
    read_haiku(path)


def test_a_missing_file_and_a_folder_that_cannot_be_written_are_errors(path, tmp_path):
  with pytest.raises(UserError, match="cannot be read: No such file"):
    read_haiku(path)
  with pytest.raises(UserError, match="cannot be written: No such file"):
    write_haiku(str(tmp_path / "missing" / "weights.npz"), TREE)
  os.mkfifo(path)
  with pytest.raises(UserError, match="cannot be read: not a regular file"):
    read_haiku(path)
  with pytest.raises(UserError, match="cannot be read: Is a directory"):
    read_haiku(str(tmp_path))


def long_text(text):
  return b"X" + struct.pack("<I", len(text)) + text


def array(shape=b"K\x03\x85", code="f4", order=b"\x89", data=b"C\x0c" + bytes(12)):
  """A pickled array of which one part is replaced by other opcodes."""
  return (
    b"cnumpy._core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R(K\x01"
    + shape
    + b"cnumpy\ndtype\n"
    + short_text(code)
    + b"\x89\x88\x87R"
    + order
    + data
    + b"tb"
  )


def tree_of(*arrays):
  items = (short_text(f"leaf{i}") + array for i, array in enumerate(arrays))
  return b"\x80\x04}" + short_text("m") + b"}(" + b"".join(items) + b"us."


ONE_MODULE = {"w": np.zeros(1, np.float32)}
BOMBS = {
  "memo of 2**30 entries": b"Nr\xff\xff\xff\x3f.",
  "memo of 2**31 entries": b"\x80\x02Nr\xff\xff\xff\x7f.",
  "place in the memo with 4000 digits": b"Np" + b"9" * 4000 + b"\n.",
  "frame of 2**60 bytes": b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"N.",
  "text of 2**60 bytes": b"\x80\x04\x8d" + struct.pack("<Q", 2**60) + b"N.",
  "bytes of 2**40 bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"N.",
  "array of bytes of 2**33 bytes": b"\x80\x05\x96" + struct.pack("<Q", 2**33) + b"N.",
  "tuples in tuples": b")" + b"\x85" * 10**6 + b".",
  "tuples in tuples of marks": b"(" * 10**5 + b"t" * 10**5 + b".",
  "lists in lists": b"]" * 10**5 + b"a" * (10**5 - 1) + b".",
  "lists in lists of marks": b"(" * 10**5 + b"l" * 10**5 + b".",
  "dictionaries in dictionaries": (b"}" + short_text("k")) * 10**5 + b"}" + b"s" * 10**5 + b".",
  "a dictionary in itself": b"}q\x00" + short_text("k") + b"h\x00s.",
  "a list in itself": b"]q\x00h\x00a.",
  "a pair of a pair of a pair": b")" + b"2\x86" * 60 + b".",
  "a key that is a pair of pairs": b"})" + b"2\x86" * 10 + b"Ns.",
  "pairs called as functions": b")" + b"2R" * 60 + b".",
  "number of 10**7 bytes": b"\x8b" + struct.pack("<i", 10**7) + b"\x7f" * 10**7 + b".",
  "number of 10**6 digits": b"I" + b"9" * 10**6 + b"\n.",
  "number of 10**6 digits with an L": b"L" + b"9" * 10**6 + b"L\n.",
  "10**6 opcodes": b"N0" * 500_000 + b"N.",
  "10**6 dictionaries": b"}" * 10**6 + b".",
  "10**6 tuples kept": b")\x94" * 500_000 + b".",
  "shape of huge numbers": tree_of(array(shape=b"\x8a\x08" + b"\xff" * 7 + b"\x7f\x85")),
  "shape of many huge numbers": tree_of(
    array(shape=b"(" + (b"\x8a\x07" + b"\xff" * 6 + b"\x7f") * 10**5 + b"t")
  ),
  "shape of 32 axes": tree_of(array(shape=b"(" + b"K\x01" * 32 + b"t")),
  "shape of truth values": tree_of(array(shape=b"\x88\x85")),
  "shape of fractions": tree_of(array(shape=b"G" + struct.pack(">d", 3.0) + b"\x85")),
  "shape of negative numbers": tree_of(array(shape=b"J\xff\xff\xff\xffJ\xfd\xff\xff\xff\x86")),
  "shape that is text": tree_of(array(shape=short_text("aaa"))),
  "data that are a number": tree_of(array(data=b"K\x0c")),
  "data that are text": tree_of(array(data=short_text("a" * 12))),
  "elements of 10 bytes": tree_of(array(code="f10")),
  "elements that are a shape": tree_of(array(code="(99999,99999)f4")),
  # One text in the file becomes the data of 1,000 arrays.
  "one text encoded 1,000 times": b"\x80\x02"
  + long_text(b"a" * 2**20)
  + b"q\x000"
  + tree_of(
    *[
      array(
        shape=b"J\x00\x00\x04\x00\x85",
        data=b"c_codecs\nencode\nh\x00" + long_text(b"latin1") + b"\x86R",
      )
    ]
    * 1000
  )[2:],
  # What follows is small in the file, and gigabytes where each leaf has its whole name.
  "a name of a megabyte before 100 others": pickle.dumps(
    {"m" * 10**6: dict.fromkeys(map(str, range(100)), np.zeros(1, np.float32))}, 4
  ),
  "one module under 100 names": pickle.dumps({str(number): ONE_MODULE for number in range(100)}, 4),
}


@pytest.mark.parametrize(
  # Tests check the types of every call, which makes opcodes ten times as slow.
  ("opcodes_max", "seconds_max"),
  [(5000, 5), pytest.param(pickle_records.OPCODES_MAX, 60, marks=pytest.mark.slow)],
)
def test_no_small_file_takes_much_memory_or_time(path, opcodes_max, seconds_max, monkeypatch):
  """Without the bounds of `pickle_records`, these take gigabytes or minutes, or end the process."""

  monkeypatch.setattr(pickle_records, "OPCODES_MAX", opcodes_max)

  def read(content):
    write(path, content)
    read_haiku(path)
    raise AssertionError("it was read")

  found = run_bounded(read, BOMBS.values(), seconds_max=seconds_max, memory_bytes_max=400 * 10**6)
  names = {content: name for name, content in BOMBS.items()}
  assert [(names[one.content], one.kind, one.detail[-300:]) for one in found] == []


def test_the_parts_of_those_arrays_are_those_of_an_array(path):
  write(path, tree_of(array(), array(data=b"C\x04" + bytes(4), shape=b"K\x01\x85")))
  assert {name: one.shape for name, one in read_haiku(path)["m"].items()} == {
    "leaf0": (3,),
    "leaf1": (1,),
  }


FOREIGN = "\x1b]0;title\x07\x1b[31m\r\n\u202eabc\udc80" + "x" * 10_000


@pytest.mark.parametrize(
  "content",
  [
    pickle.dumps({FOREIGN[:200]: 1}, 4),
    pickle.dumps({"m": {FOREIGN[:200]: 1}}, 4),
    pickle.dumps({"m": {"w": np.ones(2, np.dtype([(FOREIGN, "f4")]))}}, 2),
    b"\x80\x04X" + struct.pack("<I", 60) + b"\x1b[31m\n" * 10 + short_text("\x1b[2J") + b"\x93.",
    b"c\x1b[31mos\x07\n\x1b]0;title\x07system\n.",
    b"i\x1b[31mos\x07\nsystem\n.",
    b"P\x1b[31m\x07" + b"x" * 10_000 + b"\n.",
    b"\x80\x04" + short_text("\x1b[31m\r\n") + b"Q.",
    b"S\x1b[31m\r no quotes\n.",
    b"I\x1b[31m\n.",
    tree_of(array(code="\x1b[31m\n\x07")),
    tree_of(array(order=short_text("\x1b[31m\n"))),
  ],
)
def test_text_of_a_file_reaches_the_terminal_as_text(path, content):
  write(path, content)
  with pytest.raises(UserError) as error:
    read_haiku(path)
  assert str(error.value).isprintable()
  assert len(str(error.value)) < 1000


@given(data=st.data())
@settings(deadline=None, max_examples=200)
def test_damage_is_a_user_error_or_harmless(data, tmp_path_factory):
  """Flipped bytes never end as another exception."""
  content = bytearray(pickle.dumps(TREE, protocol=4))
  for _ in range(data.draw(st.integers(1, 4))):
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
  path = tmp_path_factory.getbasetemp() / f"{zlib.crc32(content)}.npz"
  write(path, bytes(content))
  message = ""
  try:
    read_haiku(str(path))
  except UserError as error:
    message = str(error)
  path.unlink()
  assert "\n" not in message
