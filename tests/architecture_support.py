"""What rskd supports of each architecture, measured on tiny models.

Written as a table into rskd/models/README.md, and in short into README.md.

    make architectures

The test of the same name measures again and compares.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

import torch
import transformers
from transformers import PreTrainedModel

sys.path.insert(0, str(Path(__file__).parent))

from made_architectures import MODEL_TYPES, tiny_config, tiny_model

from rskd.config import StudentConfig
from rskd.errors import ConfigError
from rskd.models.causal_lm import close, hidden_states, isolates_by_positions, output_head
from rskd.models.load import load_model
from rskd.student.architecture import build_student

ROOT = Path(__file__).parent.parent
TABLE, SHORT = ROOT / "rskd" / "models" / "README.md", ROOT / "README.md"
HEAD = ("architecture", "class", "loaded", "documents", "attention", "layers of the teacher")
_BEGIN, _END = "<!-- architectures: made by `make architectures` -->", "<!-- end of architectures -->"
OUTCOMES = ("yes", "refused", "not tried")  # how `Support.loaded` begins
_END_OF_TEXT, _SEQ_LEN = 1, 24


class Support(NamedTuple):
    """A row of the table."""

    model_type: str
    class_name: str
    loaded: str  # yes, or why not
    documents: str = "–"  # how those of a window are isolated
    attention: str = "–"  # what auto is on a CPU
    teacher_layers: str = "–"  # students of 4, 2 and 1 of its 4 layers


def measure(model_type: str) -> Support:
    """Save a tiny model, load it by rskd, and hold what a load guarantees; or say what is refused, and why."""
    try:
        model = tiny_model(tiny_config(model_type))
    except Exception as error:  # each configuration class has errors of its own
        return Support(model_type, "–", f"not tried: no tiny model of it could be built ({type(error).__name__})")
    name = type(model).__name__
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        try:
            loaded = load_model(directory, isolated=True, named="model")
        except ConfigError as error:
            return Support(model_type, name, f"refused: {_reason(error, name)}")
        check_same_logits(model, loaded)
        check_isolated(loaded)
        how = "one pass" if isolates_by_positions(loaded) else "one by one"
        return Support(
            model_type, name, "yes", how, str(loaded.config._attn_implementation), _teacher_layers(directory, loaded)
        )


def check_same_logits(model: PreTrainedModel, loaded: PreTrainedModel) -> None:
    """The logits of head and hidden states are those of the saved model's own forward pass."""
    ids = torch.arange(3, 3 + _SEQ_LEN)[None]
    with torch.no_grad():
        expected = model(input_ids=ids, use_cache=False).logits
        assert close(output_head(loaded).logits(hidden_states(loaded, ids)), expected.float())


@torch.no_grad()
def check_isolated(model: PreTrainedModel) -> None:
    """Changing the last token of one document changes nothing in the next, which is as it is alone."""
    ids = torch.arange(3, 3 + _SEQ_LEN)[None].clone()
    ids[0, 10] = _END_OF_TEXT
    changed = ids.clone()
    changed[0, 9] = 40
    found, other = (hidden_states(model, row, _END_OF_TEXT)[:, 11:] for row in (ids, changed))
    assert close(found, other)
    assert close(found, hidden_states(model, ids[:, 11:]))


def _teacher_layers(directory: str, teacher: PreTrainedModel) -> str:
    """Students of 4, 2 and 1 layers; the first is the teacher itself."""
    possible, refusals = [], []
    for num_layers in (4, 2, 1):
        config = StudentConfig(init="teacher_layers", num_layers=num_layers)
        try:
            student = build_student(
                config, teacher_dir=directory, vocab_size=64, seq_len=_SEQ_LEN, end_of_text_id=0, seed=0
            )
        except ConfigError as error:
            refusals.append(re.sub(r".*?\((.*)\): choose.*", r"\1", str(error)))
            continue
        if num_layers == 4:
            check_same_logits(teacher, student)
        possible.append(str(num_layers))
    if not refusals:
        return "any"
    return f"{', '.join(possible) or 'none'} of 4: {refusals[0]}"


def _reason(error: ConfigError, class_name: str) -> str:
    return re.sub(rf"^model:? (?:{class_name} )?|: (?:choose another|name a).*$", "", str(error))


def summary(rows: Iterable[Support]) -> str:
    """How many are supported, and which are not, as Markdown."""
    names = {outcome: [f"`{row.model_type}`" for row in rows if row.loaded.startswith(outcome)] for outcome in OUTCOMES}
    supported, refused, not_tried = names.values()
    counts = (
        f"Of the {sum(map(len, names.values()))} architectures of Transformers {transformers.__version__} that have a "
        f"causal LM, {len(supported)} are supported, {len(refused)} refused by name, and {len(not_tried)} could not be "
        "built small enough to try."
    )
    return f"{counts}\n\n- Refused: {', '.join(refused)}.\n- Not tried: {', '.join(not_tried)}."


def table(rows: Iterable[Support]) -> str:
    """A row for each architecture, as Markdown."""
    lines = [" | ".join(cells) for cells in (HEAD, ["---"] * len(HEAD), *([f"`{row[0]}`", *row[1:]] for row in rows))]
    return "\n".join(f"| {line} |" for line in lines)


def section(file: Path) -> str:
    """What was written into a README."""
    return file.read_text().partition(_BEGIN)[2].partition(_END)[0].strip()


def committed() -> dict[str, Support]:
    """The rows of the table, by model type."""
    rows = re.findall(r"^\| `(.*)` \| (.*) \|$", section(TABLE), re.MULTILINE)
    return {name: Support(name, *cells.split(" | ")) for name, cells in rows}


def write(rows: Collection[Support]) -> None:
    """Write both sections."""
    for file, text in ((TABLE, f"{summary(rows)}\n\n{table(rows)}"), (SHORT, summary(rows))):
        before, _, rest = file.read_text().partition(_BEGIN)
        file.write_text(f"{before}{_BEGIN}\n\n{text}\n\n{_END}{rest.partition(_END)[2]}")


def main() -> None:
    """Measure all architectures and write what was found."""
    transformers.logging.set_verbosity_error()
    write([measure(model_type) for model_type in sorted(MODEL_TYPES)])


if __name__ == "__main__":
    main()
