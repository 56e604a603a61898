"""Made conversations, and a tiny teacher whose tokenizer has a chat template."""

import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

from transformers import AutoTokenizer

TEMPLATE = (Path(__file__).parent / "unit/corpus/chat_templates/chatml.jinja").read_text()


def make_chat_teacher(directory: Path, tiny_teacher_dir: Path) -> Path:
    """The tiny teacher with ChatML's tokens and template."""
    shutil.copytree(tiny_teacher_dir, directory)
    tokenizer = AutoTokenizer.from_pretrained(tiny_teacher_dir)
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    tokenizer.eos_token, tokenizer.chat_template = "<|im_end|>", TEMPLATE
    tokenizer.save_pretrained(directory)
    return directory


def made(count: int, seed: int = 0) -> list[list[dict[str, Any]]]:
    random = Random(seed)

    def content() -> str:
        return " ".join(random.choices(["one", "two", "☃", "three?", "def f(): ..."], k=random.randint(1, 6)))

    return [
        [{"role": role, "content": content()} for role in ["user", "assistant"] * random.randint(1, 2)]
        for _ in range(count)
    ]


def write_jsonl(path: Path, conversations: list[list[dict[str, Any]]], **columns: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps({"messages": messages} | columns) + "\n" for messages in conversations))
    return path
