import random

import pytest

from nfnet.errors import UserError
from tests import fuzzing
from tests.train.data.sources import miniatures
from train.data.sources.tf_example import read_example

FEATURES = {
  "image": [b"\xff\xd8" + bytes(300)],
  "label": [3, 300, 2**40, -1],
  "tags": [b"", b"x"],
  "none": [],
}


def message_class():
  """Returns tf.train.Example as Google's own library makes it of its description."""
  descriptor_pb2 = pytest.importorskip("google.protobuf.descriptor_pb2")
  from google.protobuf import descriptor_pool, message_factory

  file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="t", syntax="proto3")
  kinds = descriptor_pb2.FieldDescriptorProto
  lists = (("BytesList", kinds.TYPE_BYTES), ("FloatList", kinds.TYPE_FLOAT))
  for name, kind in (*lists, ("Int64List", kinds.TYPE_INT64)):
    message = file.message_type.add(name=name)
    message.field.add(name="value", number=1, type=kind, label=kinds.LABEL_REPEATED)
  feature = file.message_type.add(name="Feature")
  feature.oneof_decl.add(name="kind")
  for number, name in enumerate(("BytesList", "FloatList", "Int64List"), start=1):
    feature.field.add(
      name=name.lower(), number=number, type=kinds.TYPE_MESSAGE, type_name=f".t.{name}",
      label=kinds.LABEL_OPTIONAL, oneof_index=0,
    )  # fmt: skip
  features = file.message_type.add(name="Features")
  entry = features.nested_type.add(name="FeatureEntry")
  entry.options.map_entry = True
  entry.field.add(name="key", number=1, type=kinds.TYPE_STRING, label=kinds.LABEL_OPTIONAL)
  entry.field.add(
    name="value", number=2, type=kinds.TYPE_MESSAGE, type_name=".t.Feature",
    label=kinds.LABEL_OPTIONAL,
  )  # fmt: skip
  features.field.add(
    name="feature", number=1, type=kinds.TYPE_MESSAGE, label=kinds.LABEL_REPEATED,
    type_name=".t.Features.FeatureEntry",
  )  # fmt: skip
  example = file.message_type.add(name="Example")
  example.field.add(
    name="features", number=1, type=kinds.TYPE_MESSAGE, type_name=".t.Features",
    label=kinds.LABEL_OPTIONAL,
  )  # fmt: skip
  pool = descriptor_pool.DescriptorPool()
  pool.Add(file)
  return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Example"))


def test_examples_of_googles_library():
  example = message_class()()
  for name, values in FEATURES.items():
    feature = example.features.feature[name]
    if values and isinstance(values[0], int):
      feature.int64list.value.extend(values)
    else:
      feature.byteslist.value.extend(values)
  example.features.feature["width"].floatlist.value.extend([1.5, 2.5])
  found = read_example(example.SerializeToString())
  found.pop("none", None)
  assert found == {name: values for name, values in FEATURES.items() if values}
  assert message_class()().SerializeToString() == b""
  assert read_example(b"") == {}


def test_the_miniatures_are_those_of_googles_library():
  assert read_example(miniatures.encode_example(FEATURES)) == FEATURES
  example = message_class()()
  example.ParseFromString(miniatures.encode_example(FEATURES))
  assert list(example.features.feature["label"].int64list.value) == FEATURES["label"]


def test_numbers_that_are_not_packed():
  value = bytes([8]) + miniatures.encode_varint(7)
  feature = miniatures.encode_field(3, value + value)
  entry = miniatures.encode_field(1, b"n") + miniatures.encode_field(2, feature)
  encoded = miniatures.encode_field(1, miniatures.encode_field(1, entry))
  assert read_example(encoded) == {"n": [7, 7]}


@pytest.mark.parametrize(
  ("encoded", "message"),
  [
    (b"\x0a", "a number is cut off"),
    (b"\x0a\x05a", "longer than its message"),
    (b"\xff" * 12, "longer than ten bytes"),
    (b"\x0b", "unknown wire type 3"),
    (b"\x08\x01", "a number is in the place of a message"),
  ],
)
def test_what_is_no_example(encoded, message):
  with pytest.raises(ValueError, match=message):
    read_example(encoded)


@pytest.mark.parametrize("count", [200, pytest.param(20_000, marks=pytest.mark.slow)])
def test_mutations(count):
  def read(content):
    try:
      read_example(content)
    except ValueError as error:
      raise UserError(str(error)) from error

  mutations = fuzzing.mutations([miniatures.encode_example(FEATURES)], random.Random(0))
  findings = fuzzing.run_bounded(read, [next(mutations) for _ in range(count)])
  assert not findings, fuzzing.describe(findings)
