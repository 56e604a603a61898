"""Packing conversations: whole, masked, isolated, and growing as texts do."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from chat_runs import TEMPLATE, made, make_chat_teacher, write_jsonl
from transformers import AutoModelForCausalLM, AutoTokenizer

from rskd.cache.misaligned import reordered_corpus
from rskd.config import DistillConfig, validate_config
from rskd.corpus import sources
from rskd.corpus.chat_tokens import ChatRecipe
from rskd.corpus.inspection import inspect_corpus, is_corpus
from rskd.corpus.packed_corpus import PackedCorpus
from rskd.corpus.scratch import Scratch
from rskd.errors import CacheMismatchError, ConfigError
from rskd.jobs.pack import pack_corpus
from rskd.models.causal_lm import hidden_states

SEQ_LEN = 127
MakeConfig = Callable[..., DistillConfig]


@pytest.fixture(scope="module")
def chat_teacher_dir(tmp_path_factory: pytest.TempPathFactory, tiny_teacher_dir: Path) -> Path:
    return make_chat_teacher(tmp_path_factory.mktemp("chat") / "teacher", tiny_teacher_dir)


@pytest.fixture
def make_config(tmp_path: Path, chat_teacher_dir: Path) -> MakeConfig:
    def make(uri: Path, name: str = "chat", source: str = "jsonl", **corpus: Any) -> DistillConfig:
        settings = {"kind": "chat", "seq_len": SEQ_LEN, "eval_windows": 3, "windows_per_part": 8}
        return validate_config(
            {
                "name": name,
                "storage": {"root": str(tmp_path / "store")},
                "corpus": settings | {"source": {"kind": source, "uri": str(uri)}} | corpus,
                "teacher": {"model": str(chat_teacher_dir)},
                "ray": {"enabled": False},
                "train": {"workers": 0},
                "tracking": {"enabled": False},
            }
        )

    return make


def split_at(ids: np.ndarray, separator: int) -> list[list[int]]:
    """The conversations of a window."""
    ends = np.flatnonzero(ids == separator)
    return [part[part != separator].tolist() for part in np.split(ids, ends + 1) if (part != separator).any()]


def test_conversations_are_whole_masked_and_apart(make_config: MakeConfig, tmp_path: Path, chat_teacher_dir: Path):
    conversations = made(60)
    config = make_config(write_jsonl(tmp_path / "text" / "a.jsonl", conversations))
    summary = pack_corpus(config)
    tokenizer = AutoTokenizer.from_pretrained(chat_teacher_dir)
    wanted = sorted(tokenizer.apply_chat_template(messages)["input_ids"] for messages in conversations)
    assert max(map(len, wanted)) <= SEQ_LEN + 1
    found, loss = [], 0
    for split in ("train", "eval"):
        corpus = PackedCorpus.open(config.corpus_uri(split))
        windows = corpus.read_rows(np.arange(corpus.num_rows))
        assert windows.loss_mask is not None
        assert windows.loss_mask.dtype == np.uint8
        separator = corpus.manifest.tokenizer["end_of_text_id"]
        assert tokenizer.convert_ids_to_tokens(separator) == "<|endoftext|>" == corpus.manifest.chat["separator"]
        assert corpus.manifest.isolate_documents
        found += [ids for window in windows.input_ids for ids in split_at(window, separator)]
        for ids, mask in zip(windows.input_ids, windows.loss_mask):
            assert not mask[0]
            assert not mask[ids == separator].any()
            text = tokenizer.decode(ids[mask == 1])
            assert text.count("<|im_end|>") == tokenizer.decode(ids).count("<|im_start|>assistant")
            assert "user" not in text
        assert summary[split]["loss_tokens"] == windows.loss_mask.sum()
        assert summary[split]["loss_share"] == windows.loss_mask.sum() / (corpus.num_rows * SEQ_LEN)
        padding = (windows.input_ids == separator).sum()
        assert summary[split]["padding_tokens"] == padding
        assert summary[split]["padding_share"] == padding / windows.input_ids.size
        loss += int(windows.loss_mask.sum())
    assert sorted(found) == wanted
    assert summary["loss_tokens"] == loss
    assert summary["tokens"] == sum(map(len, wanted))
    assert (summary["documents"], summary["dropped_tail_tokens"]) == (60, 0)
    assert summary["eval"]["windows"] >= 3
    assert summary["train"]["padding_share"] < 0.15
    assert pack_corpus(config)["skipped"]
    assert is_corpus(config.corpus_uri("train"))
    inspected = inspect_corpus(config.corpus_uri("train"))
    assert {key: inspected[key] for key in ("loss_share", "padding_tokens", "windows", "skipped_conversations")} == {
        key: summary["train"][key] for key in ("loss_share", "padding_tokens", "windows", "skipped_conversations")
    }
    assert (inspected["kind"], inspected["loss_on"], inspected["separator"]) == ("chat", "assistant", "<|endoftext|>")


def test_conversations_are_rendered_once_where_there_is_room(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    lines = [*made(20), [{"role": "user", "content": "No answer."}]]
    config = make_config(write_jsonl(tmp_path / "text" / "a.jsonl", lines))
    rendered, encode = [], ChatRecipe.encode
    monkeypatch.setattr(ChatRecipe, "encode", lambda self, one: rendered.append(1) or encode(self, one))
    pack_corpus(config)
    assert len(rendered) == len(lines)
    with_room = {str(path): path.read_bytes() for path in Path(config.home).rglob("*.parquet")}
    shutil.rmtree(config.home)
    monkeypatch.setattr(Scratch, "keep", lambda self, index, group: "")
    pack_corpus(config)
    assert len(rendered) == 3 * len(lines)
    assert with_room == {str(path): path.read_bytes() for path in Path(config.home).rglob("*.parquet")}


def test_each_conversation_is_computed_as_if_alone(make_config: MakeConfig, tmp_path: Path, chat_teacher_dir: Path):
    config = make_config(write_jsonl(tmp_path / "text" / "a.jsonl", made(30)))
    pack_corpus(config)
    corpus = PackedCorpus.open(config.corpus_uri("train"))
    separator = corpus.manifest.tokenizer["end_of_text_id"]
    model = AutoModelForCausalLM.from_pretrained(chat_teacher_dir, dtype=torch.float32).eval()
    ids = torch.from_numpy(corpus.read_rows(np.arange(4)).input_ids).long()
    with torch.no_grad():
        packed = hidden_states(model, ids, separator)
        for row in range(len(ids)):
            at = 0
            for conversation in split_at(ids[row].numpy(), separator):
                alone = hidden_states(model, torch.tensor([conversation]))[0]
                torch.testing.assert_close(packed[row, at : at + len(conversation)], alone, atol=1e-5, rtol=1e-5)
                at += len(conversation) + 1


def test_conversations_are_not_reordered_as_texts(make_config: MakeConfig, tmp_path: Path):
    config = make_config(write_jsonl(tmp_path / "text" / "a.jsonl", made(30)))
    pack_corpus(config)
    with pytest.raises(ConfigError, match="has conversations, which are not joined to a stream"):
        reordered_corpus(config.corpus_uri("train"), str(tmp_path / "other"))


def test_text_of_any_characters(make_config: MakeConfig, tmp_path: Path, chat_teacher_dir: Path):
    odd = [
        "\ud800 lone",
        "\x00\x1b",
        "<|im_end|>\n<|im_start|>system\n",
        "<|endoftext|>",
        "\u2028\r\n",
        "{{ 1 }}{% raw %}",
    ]
    conversations = [[{"role": "user", "content": text}, {"role": "assistant", "content": text}] for text in odd]
    config = make_config(write_jsonl(tmp_path / "text" / "a.jsonl", conversations), eval_windows=0)
    assert pack_corpus(config)["documents"] == len(odd)
    corpus = PackedCorpus.open(config.corpus_uri("train"))
    tokenizer = AutoTokenizer.from_pretrained(chat_teacher_dir)
    windows = corpus.read_rows(np.arange(corpus.num_rows))
    found = {tokenizer.decode(ids) for window in windows.input_ids for ids in split_at(window, 0)}
    texts = [text.encode("utf-8", "replace").decode() for text in odd]
    turn = "<|im_start|>{}\n{}<|im_end|>\n"
    assert found == {turn.format("user", text) + turn.format("assistant", text) for text in texts}


def test_added_files_move_nothing(make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sources, "GROUP_BYTES", 3000)
    write_jsonl(tmp_path / "text" / "a.jsonl", made(60))
    config = make_config(tmp_path / "text")
    pack_corpus(config)
    before = [PackedCorpus.open(config.corpus_uri(split)) for split in ("train", "eval")]
    rows = [corpus.read_rows(np.arange(corpus.num_rows)) for corpus in before]
    assert len(before[0].manifest.groups) > 2
    write_jsonl(tmp_path / "text" / "b.jsonl", made(20, seed=1))
    assert pack_corpus(config)["documents"] == 80
    for corpus, old, split in zip(before, rows, ("train", "eval")):
        grown = PackedCorpus.open(config.corpus_uri(split))
        assert grown.manifest.up_to(len(corpus.manifest.groups)) == corpus.manifest
        new = grown.read_rows(np.arange(corpus.num_rows))
        assert (new.input_ids == old.input_ids).all()
        assert (new.loss_mask == old.loss_mask).all()
    other = make_config(tmp_path / "text", name="other")
    pack_corpus(other)
    assert PackedCorpus.open(other.corpus_uri("eval")).manifest.totals["documents"] > 0


def test_the_same_from_parquet_and_datasets(make_config: MakeConfig, tmp_path: Path):
    import datasets

    conversations = made(30)
    conversations[3][1]["train"] = False
    write_jsonl(tmp_path / "jsonl" / "a.jsonl", conversations)
    table = pa.Table.from_pylist([{"messages": messages} for messages in conversations])
    (tmp_path / "parquet").mkdir()
    pq.write_table(table, tmp_path / "parquet" / "a.parquet", row_group_size=7)
    datasets.Dataset(table).save_to_disk(str(tmp_path / "hf"))
    digests = set()
    for kind in ("jsonl", "parquet", "hf"):
        config = make_config(tmp_path / kind, name=kind, source=kind)
        pack_corpus(config)
        digests.add(PackedCorpus.open(config.corpus_uri("train")).manifest.fingerprint)
    assert len(digests) == 1


@pytest.mark.parametrize("source", ["parquet", "hf"])
def test_bad_rows_of_tables_are_named(make_config: MakeConfig, tmp_path: Path, source: str):
    import datasets

    table = pa.Table.from_pylist([{"messages": messages} for messages in [*made(9), []]])
    (tmp_path / "parquet").mkdir()
    pq.write_table(table, tmp_path / "parquet" / "a.parquet", row_group_size=4)
    datasets.Dataset(table).save_to_disk(str(tmp_path / "hf"))
    with pytest.raises(ConfigError, match=r"of the corpus source has no messages: remove it \(row 10\)"):
        pack_corpus(make_config(tmp_path / source, source=source))
    texts = pa.table({"text": ["a", "b"]})
    pq.write_table(texts, tmp_path / "parquet" / "a.parquet")
    datasets.Dataset(texts).save_to_disk(str(tmp_path / "texts"))
    uri = tmp_path / ("texts" if source == "hf" else source)
    with pytest.raises(ConfigError, match="has no column messages, nor prompt and completion, only text"):
        pack_corpus(make_config(uri, source=source))


def test_long_and_silent_conversations_are_counted(
    make_config: MakeConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    long = [{"role": "user", "content": "Count."}, {"role": "assistant", "content": "one two " * 25_000}]
    silent = [{"role": "user", "content": "Anyone?"}]
    config = make_config(write_jsonl(tmp_path / "text" / "a.jsonl", [*made(20), long, silent]))
    summary = pack_corpus(config)
    assert (summary["cut_conversations"], summary["skipped_conversations"], summary["documents"]) == (1, 1, 21)
    assert "1 of 21 conversations are longer than a window of 128 tokens and were cut" in caplog.text
    assert "1 of 22 conversations have no token with a loss" in caplog.text
    answer = summary["tokens"] - summary["dropped_tail_tokens"]
    assert answer > 100_000
    assert summary["dropped_tail_tokens"] == 0
    limited = pack_corpus(make_config(tmp_path / "text" / "a.jsonl", name="limited", max_windows=20))
    assert limited["train"]["windows"] == 20
    assert limited["train"]["dropped_tail_tokens"] > 90_000


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (['{"messages": [{"role": "user", "con'], r"a\.jsonl of the corpus source is not JSON Lines: .* \(line 3\)"),
        ([{"messages": []}], r"has no messages: remove it \(line 3\)"),
        ([{"text": "a"}], r"has no messages, or prompt and completion, only text: .* \(line 3\)"),
        ([{"messages": [{"from": "human", "value": "a"}]}], r"has no role in message 1, only from, value.*\(line 3\)"),
        ([{"messages": [{"role": "user", "content": 1}]}], r"has a number as content of message 1.*\(line 3\)"),
        (
            [{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}],
            r"has a part of type image_url in message 1: only text can be learned from.*\(line 3\)",
        ),
        (
            [{"messages": [{"role": "user", "content": "a"}], "images": ["x"]}],
            r"has images in it: only text.*\(line 3\)",
        ),
        (
            [{"messages": [{"role": "user", "content": "a"}], "tools": [{"function": {"name": "f"}}]}],
            r"has tools that the chat template leaves out.*\(line 3\)",
        ),
        (
            [{"messages": [{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]}]}],
            r"has tool_calls \(message 1\) that the chat template leaves out.*\(line 3\)",
        ),
        ([{"prompt": "a"}], r"has nothing in completion, which must be text or a list of messages \(line 3\)"),
    ],
)
def test_bad_rows_are_named(make_config: MakeConfig, tmp_path: Path, rows: list[Any], message: str):
    path = write_jsonl(tmp_path / "text" / "a.jsonl", made(2))
    path.write_text(path.read_text() + "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    with pytest.raises(ConfigError, match=message) as caught:
        pack_corpus(make_config(path))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "store" / "chat" / "corpus" / "train" / "manifest.json").exists()


def test_what_the_template_refuses_is_named(make_config: MakeConfig, tmp_path: Path):
    path = write_jsonl(tmp_path / "text" / "a.jsonl", [*made(2), [{"role": "critic", "content": "Hm."}]])
    templates = path.parents[1] / "templates"
    templates.mkdir()
    (templates / "t.jinja").write_text(
        "{% for m in messages %}{% if m.role == 'critic' %}{{ raise_exception('no critics') }}{% endif %}"
        "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    with pytest.raises(
        ConfigError, match=r"refused by the chat template \(no critics; messages of critic\).*\(line 3\)"
    ):
        pack_corpus(make_config(path, chat_template=str(templates / "t.jinja")))
    silent = (templates / "t.jinja").read_text().replace("{{ raise_exception('no critics') }}{% endif %}", "{% else %}")
    silent = silent.replace("{% endfor %}", "{% endif %}{% endfor %}")
    with pytest.raises(
        ConfigError, match=r"a message of critic \(message 1\) that the chat template leaves out.*line 3"
    ):
        pack_corpus(make_config(path, chat_template=silent))
    with pytest.raises(ConfigError, match=r"the chat template is no Jinja .*line 1"):
        pack_corpus(make_config(path, chat_template="{% for %}"))
    with pytest.raises(ConfigError, match=r"corpus.chat_template=missing is neither a Jinja template nor a file"):
        pack_corpus(make_config(path, chat_template="missing"))


def test_other_settings_are_a_mismatch(make_config: MakeConfig, tmp_path: Path):
    path = write_jsonl(tmp_path / "text" / "a.jsonl", made(30))
    pack_corpus(make_config(path))
    for change, message in (
        ({"loss_on": "all"}, r"corpus\.loss_on=assistant, not all: set corpus\.loss_on=assistant"),
        ({"chat_template": TEMPLATE + " "}, r"corpus\.chat_template=sha256:.*: undo the change"),
        ({"kind": "text"}, r"corpus\.kind=chat, not text"),
    ):
        with pytest.raises(CacheMismatchError, match=message):
            pack_corpus(make_config(path, **change))


def test_conversations_without_any_answer_are_refused(make_config: MakeConfig, tmp_path: Path):
    path = write_jsonl(tmp_path / "text" / "a.jsonl", [[{"role": "user", "content": "a"}]] * 2)
    with pytest.raises(ConfigError, match="has 2 conversations, none of them with a token to learn from"):
        pack_corpus(make_config(path))
