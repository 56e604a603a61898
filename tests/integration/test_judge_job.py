"""Generate and judge, whole, against an endpoint that replies and fails as it is told to."""

import json
import multiprocessing
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from scripted_judge import ScriptedJudge, answers_in, scripted_judge
from tiny_runs import tiny_settings, write_texts

from rskd.cli import app
from rskd.config import DistillConfig, validate_config
from rskd.config.distillation import merge
from rskd.dashboard.gather import gather
from rskd.errors import ConfigError, MissingOutputError, RskdError
from rskd.evaluation import judge_client
from rskd.evaluation.ratings import read_judgements, tokens_spent
from rskd.jobs.evaluate import evaluate_students
from rskd.jobs.generate import generate_answers
from rskd.jobs.judge import judge_answers, judge_models
from rskd.jobs.pack import pack_corpus
from rskd.jobs.report import write_report
from rskd.jobs.train import train_student
from rskd.lineage.status import status
from rskd.run_app import run
from rskd.storage import Store

KEY = "sk-abc-XYZ-1234567890"
NUM_PROMPTS, GENERATIONS = 6, 2
NUM_REQUESTS = NUM_PROMPTS * GENERATIONS * 2  # in both orders


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_teacher_dir: Path) -> tuple[Path, dict[str, Any]]:
    """A root with a student and a file of prompts, and settings of it."""
    root = tmp_path_factory.mktemp("judged")
    write_texts(root / "text", range(4))
    rows = [{"prompt": f"What is {n}?", "reference": f"It is reference {n}."} for n in range(NUM_PROMPTS)]
    (root / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings = tiny_settings(
        root,
        tiny_teacher_dir,
        objective={"kind": "ce"},
        generate={
            "prompt_sets": {"own": {"kind": "own", "uri": str(root / "prompts.jsonl")}},
            "generations": GENERATIONS,
            "max_new_tokens": 6,
        },
    )
    config = validate_config(settings)
    pack_corpus(config)
    train_student(config, "default")
    generate_answers(config, "default")
    return root, settings


@pytest.fixture(autouse=True)
def prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(judge_client, "_FIRST_PAUSE_S", 0.01)


@pytest.fixture
def judged(trained: tuple[Path, dict[str, Any]]) -> Iterator[Callable[..., DistillConfig]]:
    """A function that makes a configuration of a judge at a URL; its judgements are removed afterwards."""
    root, settings = trained

    def make(judge: ScriptedJudge | str, **options: Any) -> DistillConfig:
        url = judge if isinstance(judge, str) else judge.url
        section = {"endpoint": url, "model": "scripted", "concurrency": 4, "max_retries": 3}
        return validate_config(merge(settings, {"judge": section | options}))

    yield make
    for file in sorted((root / "store" / "tiny" / "judgements").rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()


def by_rule(number: int, body: dict[str, Any]) -> str:
    """References have 8 points, answers 6; whoever stands first gets one more."""
    first, second = answers_in(body)
    return f"{9 if 'reference' in first else 7} {8 if 'reference' in second else 6}"


def error(status: int, message: str = "", **headers: str) -> tuple[int, dict[str, str], bytes]:
    return status, headers, json.dumps({"error": {"message": message}}).encode()


def test_known_scores(judged: Callable[..., DistillConfig], trained: tuple[Path, dict[str, Any]]):
    """Each answer has 6 and 7 points, each reference 9 and 8: 13/17."""
    with scripted_judge(by_rule) as judge:
        config = judged(judge, model="llama-judge")
        found = judge_models(config)
        again = judge_models(config)
        assert len(judge.bodies) == NUM_REQUESTS
        assert judge.keys == {f"Bearer {KEY}"}
    verdict = found["models"]["default"]["own"]
    assert verdict["score"] == pytest.approx(100 * 13 / 17)
    assert verdict["low"] == verdict["high"] == pytest.approx(verdict["score"])
    assert verdict["first_place_gain"] == pytest.approx(1)
    assert verdict["by_order"] == pytest.approx({"reference first": 100 * 6 / 9, "answer first": 100 * 7 / 8})
    assert (verdict["prompts"], verdict["answers_counted"], verdict["ratings"]) == (6, 12, 24)
    assert verdict["reference_words"] == 4
    assert found["tokens_spent"] == 100 * NUM_REQUESTS
    assert again["models"]["default"] == found["models"]["default"] | {"skipped": True}
    kept = read_judgements(Store(config.home))["default"]
    assert kept["sets"]["own"] == verdict
    [student] = gather(config.storage.root)["students"]
    assert student["judged"]["sets"]["own"]["score"] == verdict["score"]
    assert kept["judge"]["model"] == "llama-judge"
    ratings = pq.read_table(Path(config.judgement_uri("default")) / "own.parquet").to_pylist()
    assert Counter(row["order"] for row in ratings) == {"reference first": 12, "answer first": 12}
    assert {(row["reference"], row["answer"]) for row in ratings} == {(9, 6), (8, 7)}
    files = [file for file in trained[0].rglob("*") if file.is_file()]
    assert not any(KEY.encode() in file.read_bytes() for file in files)


def test_answers_are_parquet_beside_their_prompts(trained: tuple[Path, dict[str, Any]]):
    config = validate_config(trained[1])
    table = pq.read_table(Path(config.answers_uri("default")) / "own").to_pylist()
    assert [(row["prompt"], row["generation"]) for row in table] == [(p, g) for p in range(6) for g in range(2)]
    assert table[2]["messages"] == [{"role": "user", "content": "What is 1?"}]
    assert table[2]["reference"] == "It is reference 1."
    assert all(row["num_tokens"] <= 6 for row in table)


def test_faults_are_retried_and_change_nothing(judged: Callable[..., DistillConfig]):
    """Each request fails once, in a way of its own; one that says how long to wait is waited for."""
    faults = [error(429, "slow down", **{"Retry-After": "1"}), error(500), error(503), (200, {}, b"<html>"), None,
              (200, {}, b'{"choices": []}'), error(429, "quota"), 0.5]  # fmt: skip
    seen: dict[str, float] = {}
    waited: list[float] = []
    lock = threading.Lock()

    def script(number: int, body: dict[str, Any]) -> Any:
        text = json.dumps(body)
        with lock:
            if text in seen:
                waited.append(time.monotonic() - seen[text])
                return by_rule(number, body)
            seen[text] = time.monotonic()
            return faults[(len(seen) - 1) % len(faults)]

    with scripted_judge(script) as judge:
        found = judge_models(judged(judge, timeout_s=0.4))["models"]["default"]["own"]
        assert len(judge.bodies) == 2 * NUM_REQUESTS
    assert found["score"] == pytest.approx(100 * 13 / 17)
    assert sum(seconds >= 0.99 for seconds in waited) >= NUM_REQUESTS // len(faults)


def test_replies_that_are_no_rating_are_counted(judged: Callable[..., DistillConfig], caplog: pytest.LogCaptureFixture):
    def script(number: int, body: dict[str, Any]) -> str:
        return "I cannot say." if "What is 3?" in json.dumps(body) else by_rule(number, body)

    with scripted_judge(script) as judge:
        found = judge_models(judged(judge))["models"]["default"]["own"]
    assert (found["unparsed"], found["ratings"], found["answers_counted"], found["answers"]) == (4, 20, 10, 12)
    assert found["score"] == pytest.approx(100 * 13 / 17)
    assert found["worst"] < found["score"] < found["best"]
    assert "4 of 24 replies of the judge on own of default are no rating" in caplog.text


def test_requests_that_are_refused_are_counted(judged: Callable[..., DistillConfig], caplog: pytest.LogCaptureFixture):
    def script(number: int, body: dict[str, Any]) -> Any:
        return error(400, "too long") if "What is 3?" in json.dumps(body) else by_rule(number, body)

    with scripted_judge(script) as judge:
        found = judge_models(judged(judge))["models"]["default"]["own"]
        assert len(judge.bodies) == NUM_REQUESTS
    assert (found["refused"], found["unparsed"], found["answers_counted"]) == (4, 0, 10)
    assert "refuses 4 of 24 requests (status 400 too long)" in caplog.text
    with scripted_judge(script) as judge:  # those alone are asked again, and stop nothing
        again = judge_models(judged(judge))["models"]["default"]
        assert len(judge.bodies) == 4
    assert again["own"] == found


def test_a_prompt_that_is_always_refused_stops_no_other(judged: Callable[..., DistillConfig]):
    """Ten refusals before any rating would say that the endpoint refuses every request."""

    def script(number: int, body: dict[str, Any]) -> Any:
        return error(400, "too long") if "What is 0?" in json.dumps(body) else by_rule(number, body)

    with scripted_judge(script) as judge:
        settings = judged(judge).model_dump(mode="json", exclude_unset=True)
        five = validate_config(merge(settings, {"generate": {"generations": 5}}))
        found = judge_models(five)["models"]["default"]["own"]
    assert (found["refused"], found["answers_counted"]) == (10, 25)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (error(401, f"Incorrect API key provided: {KEY}"), r"refuses the key in OPENAI_API_KEY \(401\)"),
        (error(404, "no model scripted"), r"has no chat completions of scripted \(status 404 no model scripted\)"),
        (error(400, f"temperature {KEY}"), r"refuses every request \(status 400 temperature \*\*\*\)"),
        ((302, {"Location": "http://127.0.0.1:9/"}, b""), "has no chat completions"),
    ],
)
def test_an_endpoint_that_refuses_all_is_a_wrong_config(judged: Callable[..., DistillConfig], reply: Any, message: str):
    with scripted_judge(lambda number, body: reply) as judge, pytest.raises(ConfigError, match=message) as raised:
        judge_models(judged(judge))
    assert KEY not in str(raised.value)


def test_an_endpoint_that_stops_answering_keeps_what_has_come(judged: Callable[..., DistillConfig]):
    with scripted_judge(lambda number, body: by_rule(number, body) if number < 10 else None) as judge:
        with pytest.raises(RskdError, match=r"4 attempts at a request failed, .*; \d+ of 24 ratings") as raised:
            judge_models(judged(judge))
        assert raised.value.exit_code == 1
        paid = [json.dumps(body) for body in judge.bodies[:10]]
        judge.script = by_rule
        asked = len(judge.bodies)
        found = judge_models(judged(judge))["models"]["default"]["own"]
        assert len(judge.bodies) - asked == NUM_REQUESTS - 10
        assert not {json.dumps(body) for body in judge.bodies[asked:]} & set(paid)
    assert found["score"] == pytest.approx(100 * 13 / 17)


def test_a_killed_run_pays_for_nothing_twice(judged: Callable[..., DistillConfig]):
    """Killed while the ninth request is under way; only that one is sent again."""
    under_way, killed = threading.Event(), threading.Event()

    def script(number: int, body: dict[str, Any]) -> Any:
        if number == 8:
            under_way.set()
            killed.wait(60)
            return None
        return by_rule(number, body)

    with scripted_judge(script) as judge:
        config = judged(judge, concurrency=1)
        process = multiprocessing.get_context("fork").Process(target=judge_answers, args=(config, "default"))
        process.start()
        assert under_way.wait(60)
        process.kill()
        process.join()
        killed.set()
        assert tokens_spent(config) == 800
        judge_answers(config, "default")
        times = Counter(json.dumps(body) for body in judge.bodies)
        assert len(times) == NUM_REQUESTS
        assert [text for text, number in times.items() if number > 1] == [json.dumps(judge.bodies[8])]


def test_no_more_requests_are_under_way_than_allowed(judged: Callable[..., DistillConfig]):
    with scripted_judge(by_rule) as judge:
        judge.seconds = 0.05
        judge_models(judged(judge, concurrency=3))
        assert judge.most_at_once == 3


def test_the_cap_is_never_exceeded_and_the_run_goes_on(judged: Callable[..., DistillConfig]):
    """A request is estimated at about 370 tokens, and costs 300."""
    with scripted_judge(by_rule) as judge:
        judge.tokens = 300
        config = judged(judge, max_tokens_spent=3000)
        with pytest.raises(RskdError, match=r"=3000 is reached .*: raise it; \d+ of 24 ratings") as raised:
            judge_models(config)
        assert raised.value.exit_code == 1
        spent = tokens_spent(config)
        assert 1500 <= spent <= 3000
        asked = len(judge.bodies)
        with pytest.raises(RskdError, match="max_tokens_spent"):
            judge_models(judged(judge, max_tokens_spent=spent + 10))
        assert len(judge.bodies) == asked
        assert judge_models(judged(judge))["tokens_spent"] == 300 * NUM_REQUESTS
        assert len(judge.bodies) == NUM_REQUESTS


def cli(config: DistillConfig, tmp_path: Path, *options: str) -> int:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True)))
    return run(lambda: app(["judge", str(file), *options], standalone_mode=False))


def test_the_command(
    judged: Callable[..., DistillConfig],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    with scripted_judge(by_rule) as judge:
        assert cli(judged(judge), tmp_path, "--student", "default") == 0
        assert "76.5%" in capsys.readouterr().out
        assert cli(judged(judge), tmp_path, "--student", "nobody") == 2
        assert "nobody is no model that answers (default)" in capsys.readouterr().err
        monkeypatch.delenv("OPENAI_API_KEY")
        assert cli(judged(judge), tmp_path) == 2
        assert capsys.readouterr().err.splitlines() == [
            f"rskd: the environment variable OPENAI_API_KEY is not set: set it to the key of {judge.url}, or set "
            "judge.api_key_env=null for an endpoint that takes none"
        ]
        assert cli(judged(judge, api_key_env=None), tmp_path) == 0
    capsys.readouterr()
    unreachable = judged("http://127.0.0.1:9/v1", api_key_env=None, model="another", max_retries=1)
    assert cli(unreachable, tmp_path) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "judge.endpoint http://127.0.0.1:9/v1 does not rate: 2 attempts" in line


def test_what_is_missing_is_found_before_anything_is_generated(
    trained: tuple[Path, dict[str, Any]], judged: Callable[..., DistillConfig]
):
    root, settings = trained
    with pytest.raises(ConfigError, match="no section judge"):
        judge_models(validate_config(settings))
    with pytest.raises(ConfigError, match="no section generate"):
        generate_answers(validate_config({**settings, "generate": None}), "default")
    missing = merge(settings, {"generate": {"prompt_sets": {"other": {"kind": "dolly", "uri": str(root / "none")}}}})
    with pytest.raises(ConfigError, match=r"prompt set other: .*none does not exist"):
        generate_answers(validate_config(missing), "default")
    with pytest.raises(MissingOutputError, match="run rskd train"):
        generate_answers(validate_config({**settings, "students": {"untrained": {}}}), "untrained")


def test_generation_goes_on_and_knows_what_changed(trained: tuple[Path, dict[str, Any]], tmp_path: Path):
    """17 prompts are two parts. One that was lost is made again, equal byte for byte; other settings make others."""
    _, settings = trained
    rows = [{"prompt": f"Say {n}.", "reference": "yes"} for n in range(17)]
    (tmp_path / "many.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sets = {"many": {"kind": "own", "uri": str(tmp_path / "many.jsonl")}}
    mine = {**settings, "generate": {**settings["generate"], "prompt_sets": sets, "teacher": True}}
    config = validate_config(mine)
    assert not generate_answers(config, "teacher")["skipped"]
    folder = Path(config.answers_uri("teacher")) / "many"
    made = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert len(made) == 2
    lost = max(made)
    (folder / lost).unlink()
    assert generate_answers(config, "teacher")["many"]["answers"] == 34
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == made
    assert generate_answers(validate_config(merge(mine, {"generate": {"batch_answers": 1}})), "teacher")["skipped"]

    (tmp_path / "many.jsonl").write_text("\n".join(map(json.dumps, rows[:16])))  # the first part stays
    assert generate_answers(config, "teacher")["skipped"]
    assert [file.name for file in folder.iterdir()] == [min(made)]
    other = validate_config(merge(mine, {"generate": {"seed": 1}}))
    assert not generate_answers(other, "teacher")["skipped"]
    [file] = folder.iterdir()
    assert file.name not in made
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(RskdError, match=f"{file.name} is not what was written"):
        generate_answers(other, "teacher")


def test_other_checkpoints_answer(trained: tuple[Path, dict[str, Any]], tiny_teacher_dir: Path):
    root, settings = trained
    student = root / "store" / "tiny" / "students" / "default"
    others = {"copy": str(student), "big": str(tiny_teacher_dir)}
    config = validate_config(merge(settings, {"generate": {"checkpoints": others}}))
    for model in ("copy", "big"):
        assert generate_answers(config, model)["own"]["answers"] == 12
    said = {
        model: [row["answer"] for row in pq.read_table(Path(config.answers_uri(model)) / "own").to_pylist()]
        for model in ("default", "copy", "big")
    }
    assert said["copy"] == said["default"] != said["big"]
    assert not (student / "answers").exists()


def test_a_text_that_is_the_reference_is_rated_once(
    trained: tuple[Path, dict[str, Any]], judged: Callable[..., DistillConfig], tmp_path: Path
):
    """Both orders are then one request, whose reply counts for each."""
    first = pq.read_table(Path(judged("http://127.0.0.1:9").answers_uri("default")) / "own").to_pylist()[0]
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps({"prompt": "What is 0?", "reference": first["answer"]}))
    with scripted_judge(lambda number, body: "8 6") as judge:
        config = judged(judge).model_dump(mode="json", exclude_unset=True)
        sets = {"same": {"kind": "own", "uri": str(file)}}
        found = judge_models(validate_config({**config, "generate": {**config["generate"], "prompt_sets": sets}}))
        assert len(judge.bodies) == 3
    verdict = found["models"]["default"]["same"]
    assert (verdict["ratings"], verdict["score"]) == (4, pytest.approx(100))


def states(config: DistillConfig) -> dict[str, str]:
    return {one.output: one.state for one in status(config) if one.stage in ("generate", "judge", "report")}


def test_the_status_of_answers_and_verdicts(judged: Callable[..., DistillConfig]):
    with scripted_judge(by_rule) as judge:
        config = judged(judge)
        assert states(config)["judge default"] == "missing"
        judge_models(config)
        assert states(config)["judge default"] == "done"
        [stale] = [one for one in status(judged(judge, model="another")) if one.stage == "judge"]
        assert (stale.state, stale.reason) == ("stale", "rated with judge.model=scripted, not another")
        sections = config.model_dump(mode="json", exclude_unset=True)
        seeded = validate_config(merge(sections, {"generate": {"seed": 5}}))
        assert states(seeded)["generate default"] == states(seeded)["judge default"] == "stale"
        gone = {"prompt_sets": {"none": {"kind": "own", "uri": "none.jsonl"}}}
        refused = {one.output: one for one in status(validate_config({**sections, "generate": gone}))}
        assert refused["generate default"].then == "refused"
        assert "none.jsonl does not exist" in refused["generate default"].reason


def test_the_report_shows_verdicts_and_answers(judged: Callable[..., DistillConfig]):
    with scripted_judge(by_rule) as judge:
        config = judged(judge, model="llama-judge")
        evaluate_students(config)
        write_report(config)
        judge_models(config)
    assert states(config) == {"generate default": "done", "judge default": "done", "report": "stale"}
    page = Path(write_report(config)).read_text()
    assert states(config)["report"] == "done"
    for shown in (
        "Answers, rated",
        "llama-judge",
        "<td class=number>76.5</td>",
        "12 of 12",
        "What is 4?",
        "It is reference 4.",
    ):
        assert shown in page
    assert "What is 5?" not in page


def test_on_an_object_store(trained: tuple[Path, dict[str, Any]], judged: Callable[..., DistillConfig], object_store):
    """The teacher answers, for which nothing has to be trained; a second run asks for nothing."""
    with scripted_judge(by_rule) as judge:
        config = judged(judge).model_dump(mode="json", exclude_unset=True)
        there = {"storage": {"root": object_store.make_bucket()}, "generate": config["generate"] | {"teacher": True}}
        settings = validate_config(config | there)
        found = judge_models(settings, "teacher")
        assert judge_models(settings, "teacher")["models"]["teacher"]["skipped"]
        assert len(judge.bodies) == NUM_REQUESTS
    assert found["tokens_spent"] == tokens_spent(settings) == 100 * NUM_REQUESTS
    assert read_judgements(Store(settings.home))["teacher"]["sets"]["own"]["score"] == pytest.approx(100 * 13 / 17)


def test_a_published_set_is_compared_with_the_papers(
    trained: tuple[Path, dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "valid.jsonl").write_text(json.dumps({"instruction": "Name a colour.", "output": "Red."}))
    sets = {"few": {"kind": "vicuna", "uri": str(tmp_path)}}
    config = validate_config({**trained[1], "generate": {**trained[1]["generate"], "prompt_sets": sets}})
    assert generate_answers(config, "default")["few"]["prompts"] == 1
    assert "prompt set few has 1 prompts, the paper's 80 (E.3)" in caplog.text
