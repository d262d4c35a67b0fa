"""The configurations are the papers', and the table of both is up to date."""

import pytest

from tests.repository import ROOT
from train.hyper_parameters import as_markdown, sections

TABLE = ROOT / "docs" / "hyper_parameters.md"
ROWS = [
  pytest.param(row, id=f"{section.title}: {row.what}")
  for section in sections()
  for row in section.rows
]


@pytest.mark.parametrize("row", ROWS)
def test_a_value_is_the_papers_or_says_where_it_is_from(row):
  if None in row.stated:
    assert set(row.stated) == {None}
    assert row.remark
  elif not row.remark:
    assert row.values() == row.stated


def test_the_stored_table_is_that_of_the_configurations():
  """`python -m train.hyper_parameters > docs/hyper_parameters.md` regenerates the table."""
  assert TABLE.read_text(encoding="utf-8") == as_markdown()
