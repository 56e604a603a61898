from rskd.corpus.prose import clean_paragraphs, cut

FLAT = """copy(src, dst) -> None

    Copy ``src`` to *dst* with :func:`shutil.copyfile`,
    and its mode.

    New in version 3.5.

    Which is the same as:

        copyfile(src, dst)
        copymode(src, dst)

    - src: a path
    - dst: another

    >>> copy("a", "b")

    After the example."""


def test_paragraphs_are_clean_up_to_the_first_that_is_no_prose():
    assert clean_paragraphs(FLAT, "shutil.copy") == (
        "Copy `src` to dst with `shutil.copyfile`, and its mode.",
        "Which is the same as:",
        "    copyfile(src, dst)\n    copymode(src, dst)",
        "- src: a path\n- dst: another",
    )


def test_a_summary_ends_with_a_full_stop():
    assert clean_paragraphs("Return the sum\nof both", "add") == ("Return the sum of both.",)


def test_a_call_of_another_name_is_text():
    assert clean_paragraphs("copy(src) is not this.", "move") == ("copy(src) is not this.",)


def test_nothing_is_said():
    assert clean_paragraphs("", "copy") == clean_paragraphs("copy(src)", "copy") == ()


def test_cut_takes_paragraphs_until_there_is_enough():
    assert cut(("One two.", "Three four.", "Five."), enough=3, most=10) == ("One two.\n\nThree four.", ("Five.",))


def test_cut_takes_no_paragraph_that_makes_it_too_long():
    assert cut(("One two.", "Three four five."), enough=3, most=4) == ("One two.", ("Three four five.",))


def test_a_long_first_paragraph_ends_with_a_sentence():
    assert cut(("One two. Three four. Five six.",), enough=3, most=4) == ("One two. Three four.", ())


def test_what_leads_to_something_left_out_is_left_out_too():
    assert cut(("It does. For example:",), enough=3, most=9) == ("It does.", ())
    assert cut(("It does.", "For example:"), enough=9, most=9) == ("It does.", ())
    assert cut(("For example:",), enough=9, most=9) == ("", ())
