"""What packing takes beyond its imports does not grow with the length of a document, or of all documents of a group."""

import json
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics

import pytest

CHARACTERS = 3_000_000
TEXT = ("\n\n".join(topics[name] for name in sorted(topics)) * 9)[:CHARACTERS]
MOST_MIB = 1024 / 10  # 30 MB may take 1 GiB, this is a tenth

PACK = """
import sys
from pathlib import Path
from rskd.config import validate_config
from rskd.jobs.pack import pack_corpus

def peak_mib():
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024

def pack(name, kind, uri):
    return pack_corpus(validate_config({
        "name": name, "storage": {"root": sys.argv[1]}, "teacher": {"model": sys.argv[2]},
        "corpus": {"source": {"kind": kind, "uri": uri}, "seq_len": 256, "eval_windows": 0},
        "ray": {"enabled": False}, "train": {"workers": 0},
    }))

pack("imports", sys.argv[3], sys.argv[4])
before = peak_mib()
tokens = pack("measured", sys.argv[3], sys.argv[5])["tokens"]
print(tokens, peak_mib() - before)
"""


def _write(path: Path, documents: list[str]) -> str:
    """As lines of JSON, or as a text of one document."""
    lines = "".join(json.dumps({"text": document}) + "\n" for document in documents)
    path.write_text(lines if path.suffix == ".jsonl" else documents[0])
    return str(path)


@pytest.mark.e2e
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
@pytest.mark.parametrize(
    ("kind", "suffix", "documents"),
    [
        ("text", ".txt", [TEXT.replace("\n", " ")]),
        ("jsonl", ".jsonl", [TEXT[start : start + 150_000] for start in range(0, CHARACTERS, 150_000)]),
    ],
    ids=["a document of one line", "many documents"],
)
def test_peak_memory(tmp_path: Path, tiny_teacher_dir: Path, kind: str, suffix: str, documents: list[str]):
    small = _write(tmp_path / f"small{suffix}", [TEXT[:20_000]])
    large = _write(tmp_path / f"large{suffix}", documents)
    command = [sys.executable, "-c", PACK, str(tmp_path / "store"), str(tiny_teacher_dir), kind, small, large]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    tokens, mib = map(float, done.stdout.split())
    assert tokens > CHARACTERS / 8
    assert mib < MOST_MIB
