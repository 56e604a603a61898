from rskd.markdown import markdown_table


def test_a_table_whose_cells_hold_any_text():
    assert markdown_table(["a", "b"], [["1", "x|y"]]) == "| a | b |\n| --- | --- |\n| 1 | x\\|y |"
