"""What a configuration names, as it is now: the teacher and its tokenizer; and the text, where an output is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from rskd.config import DistillConfig
from rskd.corpus.chat_tokens import ChatRecipe
from rskd.corpus.packed_corpus import FORMAT_VERSION, rows_per_group
from rskd.corpus.sources import list_files, located
from rskd.errors import ConfigError, MissingOutputError
from rskd.models.chat_template import chat_template, separator_id
from rskd.models.files import check_model, model_fingerprints, resolve_model
from rskd.models.tokenizer import (
    beginning_of_text,
    end_of_text_id,
    load_tokenizer,
    tokenizer_fingerprint,
    vocab_size_of_model,
)
from rskd.tracking.registry import local_model


class Inputs:
    """The teacher of a configuration, looked up when it is first asked for. Each may raise ConfigError."""

    def __init__(self, config: DistillConfig):
        self.config = config
        self._fingerprints: dict[str, tuple[str, str]] = {}

    @cached_property
    def teacher_dir(self) -> str:
        """Its directory, in the Hugging Face layout."""
        config = self.config
        model = local_model(config, config.teacher.model)
        return resolve_model(model, revision=config.teacher.revision, teachers=config.teachers_uri)

    @property
    def teacher_fingerprints(self) -> tuple[str, str]:
        """`fingerprints` of the teacher."""
        return self.fingerprints(self.teacher_dir)

    def fingerprints(self, directory: str) -> tuple[str, str]:
        """`rskd.models.files.model_fingerprints`; the weights are read once."""
        if directory not in self._fingerprints:
            self._fingerprints[directory] = model_fingerprints(directory)
        return self._fingerprints[directory]

    @property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer, which is that of the corpus."""
        return self._tokenizer_and_head[0]

    @property
    def corpus_head(self) -> dict[str, Any]:
        """What the manifest of a corpus says before anything is packed.

        `vocab_size` is the teacher's number of output rows where its tokenizer has more ids.
        """
        return self._tokenizer_and_head[1]

    @property
    def chat(self) -> ChatRecipe | None:
        """How the conversations of the corpus become tokens; None where its documents are texts."""
        return self._tokenizer_and_head[2]

    @cached_property
    def _tokenizer_and_head(self) -> tuple[Tokenizer, dict[str, Any], ChatRecipe | None]:
        corpus, teacher = self.config.corpus, self.config.teacher
        tokenizer = load_tokenizer(self.teacher_dir, trust_remote_code=teacher.trust_remote_code)
        fingerprint = tokenizer_fingerprint(tokenizer)
        named = load_tokenizer(corpus.tokenizer) if corpus.tokenizer else tokenizer
        if tokenizer_fingerprint(named) != fingerprint:
            raise ConfigError(
                f"corpus.tokenizer={corpus.tokenizer} gives other ids than the tokenizer of teacher {teacher.model}: "
                "remove the key, or name the teacher's tokenizer"
            )
        num_ids = vocab_size_of_model(tokenizer, self.teacher_dir, trust_remote_code=teacher.trust_remote_code)
        chat = None
        if corpus.kind == "chat":
            template = chat_template(named, corpus.chat_template)
            separator = separator_id(tokenizer, template, num_ids)
            chat = ChatRecipe(tokenizer.backend_tokenizer, template, corpus.loss_on, separator)
        wanted_bos = "none" if chat else corpus.bos  # the template's
        bos = beginning_of_text(tokenizer, wanted_bos, num_ids=num_ids, isolated=corpus.isolate_documents)
        head = {
            "format_version": FORMAT_VERSION,
            "source": corpus.source.model_dump(mode="json"),
            "tokenizer": {
                "name": corpus.tokenizer or teacher.model,
                "fingerprint": fingerprint,
                "vocab_size": num_ids,
                "end_of_text_id": chat.separator_id if chat else end_of_text_id(tokenizer),
                "bos_ids": list(bos.ids),
            },
            "bos": bos.mode,
            "seq_len": corpus.seq_len,
            "seed": corpus.seed,
            "isolate_documents": corpus.isolate_documents,
            "windows_per_part": corpus.windows_per_part,
            "rows_per_group": rows_per_group(corpus.seq_len),
            "max_windows": corpus.max_windows,
        }
        if chat:
            separator = tokenizer.backend_tokenizer.id_to_token(chat.separator_id)
            head["chat"] = {
                "loss_on": chat.loss_on,
                "template": chat.template.text,
                "named": chat.template.named_tokens,
                "separator": separator,
            }
        return tokenizer.backend_tokenizer, head, chat

    def located(self, model: str) -> str:
        """A local folder made absolute, that of a registered model; anything else (hub id, s3://) as it is."""
        path = Path(local_model(self.config, model)).expanduser()
        return str(path.resolve()) if "://" not in model and path.exists() else model


@contextmanager
def inputs_first(config: DistillConfig) -> Iterator[None]:
    """Where an output turns out to be missing, report a corpus source or teacher that is missing too: ConfigError.

    The text is not needed where the output is there: a student is trained from a cache far from it.
    """
    try:
        yield
    except MissingOutputError:
        list_files(located(config.corpus.source), chat=config.corpus.kind == "chat")
        check_model(local_model(config, config.teacher.model))
        raise
