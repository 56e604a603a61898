from rskd.evaluation.answers import Answered
from rskd.evaluation.generation import Answer, Finish
from rskd.evaluation.prompts import Prompt
from rskd.pages.judged import LONGEST, SHOWN, Judged, judged_sections

QUESTION, REFERENCE = "Is <b> a tag?", "Yes, & a bold one."


def answered(text: str, finish: Finish = "stop", tokens: int = 3) -> list[Answered]:
    prompt = Prompt(({"role": "user", "content": QUESTION},), REFERENCE, "raw")
    return [Answered(0, 0, prompt, Answer(text, tokens, finish))]


def shown(**answers: list[Answered]) -> str:
    (section,) = judged_sections(Judged({"my <set>": answers}))
    return section


def test_answers_stand_side_by_side_and_are_text():
    section = shown(teacher=answered("It <i>is</i>."), kd=answered("Tag\ntag."))
    cells = [part.partition("</div>")[0].partition(">")[2] for part in section.split("<div style")[1:]]
    assert cells == ["Is &lt;b&gt; a tag?", "Yes, &amp; a bold one.", "It &lt;i&gt;is&lt;/i&gt;.", "Tag\ntag."]
    assert "<th>prompt</th><th>reference</th><th>teacher</th><th>kd</th>" in section
    assert "Answers to my &lt;set&gt;" in section
    assert f"the first {SHOWN} prompts" in section


def test_a_long_answer_is_cut_and_its_length_said():
    section = shown(kd=answered("x" * 1234, "length", 300))
    assert f">{'x' * LONGEST}…<small>the first 800 of 1,234 characters; stopped after 300 tokens</small>" in section


def test_one_at_the_limit_is_whole():
    assert f">{'x' * LONGEST}</div>" in shown(kd=answered("x" * LONGEST))


def test_it_is_said_where_there_is_no_answer():
    assert "<small>an empty answer</small>" in shown(kd=answered("", tokens=0))
    assert "<small>no room for an answer</small>" in shown(kd=answered("", "no room", 0))


def test_nothing_is_shown_where_nothing_was_generated():
    assert judged_sections(Judged()) == []
