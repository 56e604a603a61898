"""README.md says in short what the table of architectures says."""

from architecture_support import SHORT, TABLE, committed, section, summary, table


def test_both_sections_are_those_of_the_table():
    rows = committed().values()
    assert section(SHORT) == summary(rows)
    assert section(TABLE) == f"{summary(rows)}\n\n{table(rows)}"
