import pytest

from nfnet.counts import format_count


@pytest.mark.parametrize(
  ("number", "noun", "text"),
  [(0, "file", "0 files"), (1, "class", "1 class"), (1_234_567, "class", "1,234,567 classes")],
)
def test_count(number, noun, text):
  assert format_count(number, noun) == text
