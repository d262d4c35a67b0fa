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
from nfnet.weights.haiku_pickle import read_haiku, write_haiku

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


def test_an_extension_code_is_refused(path, tmp_path):
  """Opcode EXT1 is a number for a name that this process registered earlier."""
  copyreg.add_extension("os", "system", 200)
  try:
    write(path, b"\x80\x02\x82\xc8(X" + struct.pack("<I", 4) + b"truetR.")
    with pytest.raises(UserError, match=r"refused: it names os\.system"):
      read_haiku(path)
  finally:
    copyreg.remove_extension("os", "system", 200)
  with pytest.raises(UserError, match="weights"):
    read_haiku(path)


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
    ({"m": np.zeros(3)}, "'m' holds a array"),
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
