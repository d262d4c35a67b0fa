import json
import os
import re
import struct

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from nfnet.errors import UserError
from nfnet.weights.load import load_weights
from nfnet.weights.safetensors_file import read_safetensors, write_safetensors
from nfnet.weights.timm import to_timm
from tests.fuzzing import run_bounded


def file_of(header, data=b"", header_bytes=None):
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  return struct.pack("<Q", len(text) if header_bytes is None else header_bytes) + text + data


def entry(dtype="F32", shape=(2,), begin=0, end=8, **more):
  return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end], **more}


@pytest.fixture
def read(tmp_path):
  def read_content(content):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    return read_safetensors(str(path))

  return read_content


def test_what_is_written_is_read_and_has_the_mode_that_the_umask_leaves(tmp_path):
  arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.float64(2)[None]}
  for umask, mode in ((0o022, 0o644), (0o007, 0o660)):
    path = tmp_path / f"{umask}.safetensors"
    before = os.umask(umask)
    try:
      write_safetensors(path, arrays)
    finally:
      os.umask(before)
    assert path.stat().st_mode & 0o777 == mode
  found = read_safetensors(str(path))
  assert found.keys() == arrays.keys()
  for name, value in arrays.items():
    np.testing.assert_array_equal(found[name], value)
  path.chmod(0o640)
  write_safetensors(path, {})
  assert path.stat().st_mode & 0o777 == 0o640
  assert not read_safetensors(str(path))


def test_a_file_that_cannot_be_written_is_one_line(tmp_path):
  with pytest.raises(UserError, match=r"^weights '.*/none/a' cannot be written: .*No such file"):
    write_safetensors(tmp_path / "none" / "a", {})


def test_what_the_package_writes_is_read(read):
  rng = np.random.default_rng(0)
  tensors = {
    "a": rng.standard_normal((2, 3)).astype(np.float32),
    "b": rng.standard_normal((4, 1, 2)),
    "c": rng.standard_normal(5).astype(np.float16),
    "scalar": np.array(0.5, np.float32),
    "empty": np.zeros((0, 3), np.float32),
  }
  found = read(safetensors.numpy.save(tensors, {"format": "pt"}))
  assert found.keys() == tensors.keys()
  for name, expected in tensors.items():
    assert found[name].dtype == expected.dtype
    np.testing.assert_array_equal(found[name], expected, strict=True)


def test_every_bfloat16_becomes_the_same_float32(read):
  bits = np.arange(2**16, dtype=np.uint16)
  found = read(file_of({"a": entry("BF16", (2**16,), 0, 2**17)}, bits.tobytes()))["a"]
  # A bfloat16 is the upper half of a float32.
  expected = (bits.astype(np.uint32) << 16).view(np.float32)
  assert found.dtype == np.float32
  np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("dtype", [np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16)])
def test_a_network_in_half_precision_is_loaded(parameters, tmp_path, dtype):
  tensors = {name: array.astype(dtype) for name, array in to_timm(parameters, "P0").items()}
  place, header, parts = 0, {}, []
  for name, array in tensors.items():
    name_of_type = {"bfloat16": "BF16", "float16": "F16"}[dtype.name]
    header[name] = entry(name_of_type, array.shape, place, place + array.nbytes)
    place += array.nbytes
    parts.append(array.tobytes())
  path = tmp_path / "weights.safetensors"
  path.write_bytes(file_of(header, b"".join(parts)))
  weights = load_weights(str(path))
  assert weights.variant == "P0"
  found = to_timm(weights.parameters, "P0")
  for name, expected in tensors.items():
    assert found[name].dtype == np.float32
    np.testing.assert_array_equal(found[name], expected.astype(np.float32))


@pytest.mark.parametrize(
  ("dtype", "size_bytes"),
  [
    *(
      ("F8_E4M3", 2),
      ("F8_E5M2", 2),
      ("F8_E8M0", 2),
      ("F8_E4M3FNUZ", 2),
      ("F4", 1),
      ("F6_E2M3", 2),
    ),
    *(("I4", 1), ("U64", 16), ("I64", 16), ("I32", 8), ("U8", 2), ("BOOL", 2), ("C64", 16)),
    *(("C128", 32), ("f32", 8), ("", 8), ("\x1b[31m\r\n", 8), ("F" * 10**6, 8)),
  ],
)
def test_other_element_types_are_one_line(read, dtype, size_bytes):
  message = (
    r"cannot be read: 'a\.b' has elements of type .*; weights have one of F64, F32, F16, BF16"
  )
  with pytest.raises(UserError, match=message) as error:
    read(file_of({"a.b": entry(dtype, (2,), 0, size_bytes)}, bytes(size_bytes)))
  assert str(error.value).isprintable()
  assert len(str(error.value)) < 500


@pytest.mark.parametrize("dtype", [None, 7, ["F32"], {"F32": 1}])
def test_an_element_type_that_is_no_text_is_one_line(read, dtype):
  with pytest.raises(UserError, match=r"may be damaged: a\.b\.dtype is .*, must be of type str"):
    read(file_of({"a.b": entry(dtype)}, bytes(8)))


ONE = {"a": entry()}
LIES = {
  "overlap": ({"a": entry(), "b": entry(begin=4, end=12)}, bytes(12), "'b' do not follow those"),
  "same place": ({"a": entry(), "b": entry()}, bytes(8), "'b' do not follow those before them"),
  "gap": ({"a": entry(begin=4, end=12)}, bytes(12), "'a' do not follow those before them"),
  "gap between": ({"a": entry(), "b": entry(begin=9, end=17)}, bytes(17), "'b' do not follow"),
  "after the end": (ONE, bytes(7), "'a' end after the file does"),
  "far after the end": (
    {"a": entry("F32", (2**40,), 0, 2**42)},
    bytes(8),
    "'a' end after the file does",
  ),
  "more than is needed": (ONE, bytes(9), "the file goes on after the elements"),
  "no arrays, but data": ({}, bytes(9), "the file goes on after the elements"),
  "backwards": ({"a": entry(begin=8, end=0)}, bytes(8), "has -8 bytes where (2,) needs 8"),
  "other length": ({"a": entry(shape=(3,))}, bytes(8), "has 8 bytes where (3,) needs 12"),
  "product beyond 64 bits": (
    {"a": entry(shape=(2**40, 2**40))},
    bytes(8),
    "has 8 bytes where (1099511627776, 1099511627776) needs",
  ),
  "product of 0 with 64 bits": (
    {"a": entry(shape=(2**47, 2**47, 0), end=0)},
    b"",
    "the file may be damaged",
  ),
  "size beyond 64 bits": (
    {"a": entry(shape=(2**70,))},
    bytes(8),
    "a.shape[0] is 118059162071",
  ),
  "negative size": ({"a": entry(shape=(-1, -2))}, bytes(8), "a.shape[0] is -1, must be an integer"),
  "size that is a fraction": ({"a": entry(shape=(2.0,))}, bytes(8), "a.shape[0] is 2.0, must be"),
  "size that is true": ({"a": entry(shape=(True, 2))}, bytes(8), "a.shape[0] is True, must be"),
  "size that is text": ({"a": entry(shape=("2",))}, bytes(8), "a.shape[0] is '2', must be"),
  "offset beyond 64 bits": ({"a": entry(end=2**64 + 8)}, bytes(8), "a.data_offsets[1] is"),
  "three offsets": (
    {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8, 8]}},
    bytes(8),
    "1 dimension and 3 offsets",
  ),
  "nine axes": ({"a": entry(shape=[1] * 8 + [2])}, bytes(8), "9 dimensions and 2 offsets"),
  "10**5 axes": ({"a": entry(shape=[2] * 10**5)}, bytes(8), "100,000 dimensions"),
  "no shape": ({"a": {"dtype": "F32"}}, b"", "a has no field 'shape'"),
  "one more field": (
    {"a": entry(more=1)},
    bytes(8),
    "'a' has other fields than dtype, shape",
  ),
  "an array as a list": ({"a": [1]}, b"", "a is [1], must be an object"),
  "hostile name": ({"\x1b[31m\n" * 10**4: 1}, b"", r": \x1b[31m\n\x1b[31m"),
  "two of one name": (
    b'{"a":%b,"a":%b}' % ((json.dumps(entry()).encode(),) * 2),
    bytes(8),
    "the field 'a' is there twice",
  ),
  "nested": (b'{"a":' + b"[" * 10**6, b"", "values are nested too deeply"),
  "no JSON": (b'{"a"' + b"\x1b[31m\r\n" * 1000, b"", "may be damaged"),
  "no text": (b"{" + b"\xff" * 100, b"", "may be damaged"),
  "a list": (b"{}[]", b"", "may be damaged"),
  "huge number": (b'{"a":' + b"9" * 10**5 + b"}", b"", "Exceeds the limit"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_one_line(read, lie):
  header, data, message = LIES[lie]
  content = file_of(header, data)

  def refuse(content):
    with pytest.raises(UserError, match=re.escape(message)) as error:
      read(content)
    raise error.value

  assert run_bounded(refuse, [content], seconds_max=5, memory_bytes_max=10**8) == []
  with pytest.raises(UserError):
    refuse(content)


@pytest.mark.parametrize("header_bytes", [2**63, 2**40, 2**64 - 1, 3 * 2**20, 5 * 2**20])
def test_a_header_of_another_length_is_one_line(read, header_bytes):
  with pytest.raises(UserError, match=f"a header of {header_bytes:,} bytes in a file of "):
    read(file_of(b"{}", bytes(2**20 if header_bytes < 5 * 2**20 else 2**23), header_bytes))


@pytest.mark.parametrize("length", range(0, 12))
def test_a_file_cut_short_is_one_line(read, length):
  with pytest.raises(UserError, match="cannot be read, the file may be damaged"):
    read(file_of(ONE, bytes(8))[:length])
