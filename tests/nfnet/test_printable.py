import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfnet.printable import escape, is_printable, printable


@pytest.mark.parametrize(
  ("text", "shown"),
  [
    ("Köln/猫 001.jpg", None),
    ("क्\u200dष", None),
    ("new\u00a0york", None),
    (os.fsdecode(b"caf\xe9"), r"caf\udce9"),
    ("a\x1b[31mb", r"a\x1b[31mb"),
    ("two\nlines\r", r"two\nlines\r"),
    ("\x9b2J", r"\x9b2J"),
    ("a\u2028b", r"a\u2028b"),
    ("gpj\u202eexe", r"gpj\u202eexe"),
  ],
)
def test_only_what_terminals_obey_is_escaped(text, shown):
  assert printable(text) == escape(text) == (shown or text)
  assert is_printable(text) == (shown is None)


@given(st.text(st.characters(codec=None)))
def test_everything_can_be_printed_on_one_line(text):
  assert is_printable(escape(text))
  assert len(escape(text).splitlines()) <= 1
  escape(text).encode()


def test_long_texts_lose_their_middle():
  assert len(printable("a" * 10_000)) < 310
  assert printable("a" * 200 + "\x00" * 200).endswith(r"\x00")
