"""Whether two models are of one family, by their names: a judge favours what is like itself."""

from __future__ import annotations

import re
from collections.abc import Mapping

# Families of models by the words of their names; those that were made from another belong to that one.
_FAMILIES: Mapping[str, str] = {
    "llama": "llama", "codellama": "llama", "tinyllama": "llama", "vicuna": "llama", "alpaca": "llama",
    "tulu": "llama", "nemotron": "llama", "qwen": "qwen", "qwq": "qwen", "gemma": "gemini", "gemini": "gemini",
    "mistral": "mistral", "mixtral": "mistral", "ministral": "mistral", "codestral": "mistral", "zephyr": "mistral",
    "gpt": "gpt", "chatgpt": "gpt", "claude": "claude", "deepseek": "deepseek", "phi": "phi", "smollm": "smollm",
    "olmo": "olmo", "granite": "granite", "falcon": "falcon", "command": "command", "aya": "command",
    "glm": "glm", "chatglm": "glm", "yi": "yi", "internlm": "internlm", "kimi": "kimi", "grok": "grok",
    "minimax": "minimax",
}  # fmt: skip


def families(model: str) -> frozenset[str]:
    """The families that a model belongs to by its name; the first word of its last part where none is known."""
    words = re.findall(r"[a-z]+", model.lower())
    known = frozenset(_FAMILIES[word] for word in words if word in _FAMILIES)
    own = re.search(r"[a-z]+", model.rstrip("/").rpartition("/")[2].lower())
    return known or (frozenset({own[0]}) if own else frozenset())


def kinship(judge_model: str, teacher: str) -> str | None:
    """A warning where judge and teacher are of one family, by their names."""
    shared = sorted(families(judge_model) & families(teacher))
    if not shared:
        return None
    return (
        f"judge {judge_model} and teacher {teacher} are of one family ({', '.join(shared)}): judges favour what is "
        "like them, so compare students with each other rather than with other models"
    )
