import numpy as np
import pytest

from nfnet.errors import (
  MESSAGE_CHARACTERS_MAX,
  UserError,
  check_choice,
  check_number,
  checked_whole_number,
  escaped,
  format_count,
  quoted,
  short_text,
  shortened,
  there_are,
)

# An escape sequence of a terminal, line ends of several kinds, a mark that turns the direction of
# writing, a character of no width, and a byte that is not UTF-8.
HOSTILE = "a\x1b[31m\x1b]0;t\x07\r\n\x85\u2028\u2029\v\f\u202e\u200b\x9b2J\udcff\x00\x7fb"


@pytest.mark.parametrize("show", [escaped, quoted, shortened, lambda text: str(UserError(text))])
def test_text_from_a_file_is_shown_as_text(show):
  text = show(HOSTILE)
  assert text.isprintable()
  assert text.strip("'").startswith(
    r"a\x1b[31m\x1b]0;t\x07\r\n\x85\u2028\u2029\x0b\x0c\u202e\u200b"
  )
  assert text.strip("'").endswith(r"\x9b2J\udcff\x00\x7fb")
  assert escaped(text) == text


def test_what_is_printable_stays_as_it_is():
  text = "Grüße 猫 'x' \"y\" \\n 🐈"
  assert escaped(text) == shortened(text) == str(UserError(text)) == text
  assert quoted("a'b") == '"a\'b"'


@pytest.mark.parametrize(
  ("value", "shown"),
  [
    *((None, "None"), (True, "True"), (12, "12"), (0.5, "0.5"), (float("nan"), "nan")),
    *(([], "[]"), ([20], "[20]"), (["a", 1, None, 2], "['a', 1, None, ...]")),
    ([2**200], "[an integer of 201 bits]"),
    ([[1]], "a value of type list"),
    ({"a": 1}, "a value of type dict"),
    (b"bytes", "a value of type bytes"),
  ],
)
def test_values_of_any_type_and_size_are_shown_shortly(value, shown):
  assert quoted(value) == shown


def test_texts_that_look_alike_are_told_apart():
  composed, decomposed = "Caf\u00e9", "Cafe\u0301"
  assert quoted(composed) == f"'{composed}'"
  assert quoted(decomposed) == r"'Cafe\u0301'"


def test_an_integer_that_python_would_not_print_is_shown_shortly():
  assert quoted(10**5000) == "an integer of 16610 bits"


def test_what_is_nested_deeply_is_shown_shortly():
  value = []
  for _ in range(100_000):
    value = [value]
  assert quoted(value) == "a value of type list"


def test_what_is_long_is_cut():
  assert quoted("x" * 10**6) == f"'{'x' * 80}'..."
  assert shortened("x" * 10**6) == f"{'x' * 80}..."
  assert len(short_text(KeyError("x" * 10**6))) < 250
  message = str(UserError("begin" + "x" * 10**6 + "end"))
  assert len(message) < MESSAGE_CHARACTERS_MAX + 10
  assert message.startswith("begin")
  assert message.endswith("end")


def test_an_error_of_another_library_is_named():
  assert short_text(ValueError("it  is\nwrong")) == "it is wrong"
  assert short_text(ValueError()) == "ValueError:"
  assert short_text(KeyError("a")) == "KeyError: 'a'"


@pytest.mark.parametrize(
  ("number", "noun", "text"),
  [(0, "file", "0 files"), (1, "class", "1 class"), (1_234_567, "class", "1,234,567 classes")],
)
def test_one_thing_is_in_the_singular(number, noun, text):
  assert format_count(number, noun) == text


def test_the_verb_has_the_number_of_the_noun():
  assert there_are(1, "class name") == "there is 1 class name"
  assert there_are(2000, "class") == "there are 2,000 classes"


class Unhashable:
  __hash__ = None


@pytest.mark.parametrize("value", [None, "third", ["first"], Unhashable(), "x" * 5000])
def test_a_choice_is_one_of_the_texts(value):
  check_choice("way", "first", ("first", "second"))
  with pytest.raises(ValueError, match=r"^way=.{1,90}: must be 'first' or 'second'$"):
    check_choice("way", value, ("first", "second"))


@pytest.mark.parametrize("value", [None, True, 0, 10, 2.0, "2", np.int64(11), 10**400, np.ones(2)])
def test_a_whole_number_is_within_its_bounds(value):
  assert checked_whole_number("count", np.int64(9), 1, 9) == 9
  with pytest.raises(ValueError, match=r"^count=.{1,40}: must be a whole number from 1 to 9$"):
    checked_whole_number("count", value, 1, 9)


def test_a_number_of_numpy_is_shown_as_a_number():
  with pytest.raises(ValueError, match=r"^count=0: must be a whole number of at least 1$"):
    checked_whole_number("count", np.int64(0), 1)
  with pytest.raises(ValueError, match=r"^rate=-0\.5: must be a number of at least 0$"):
    check_number("rate", np.float32(-0.5), lambda x: x >= 0, "a number of at least 0")
