from train.report.table import format_table


def test_table_is_aligned():
  assert format_table([("a", "bbbb", "c"), ("dd", "e", "")], header=("x", "y", "z")) == (
    "-----------\nx   y     z\n-----------\na   bbbb  c\ndd  e\n-----------"
  )
