from train.report.table import format_table


def test_table_is_aligned():
  assert format_table([("a", "bbbb", "c"), ("dd", "e", "")], header=("x", "y", "z")) == (
    "-----------\nx   y     z\n-----------\na   bbbb  c\ndd  e\n-----------"
  )


def test_what_is_not_printable_is_escaped_and_the_columns_stay_aligned():
  assert format_table([("\x1b[2J\n", "b"), ("caf\u00e9", "\u202ec")], header=("x\r", "y")) == (
    "------------------\nx\\r        y\n------------------\n"
    "\\x1b[2J\\n  b\ncaf\u00e9       \\u202ec\n------------------"
  )
