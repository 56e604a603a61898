"""Packing against the tokenizer alone: python tests/bench/bench_pack.py --text FOLDER [--datatrove PYTHON] [--out DIR].

FOLDER holds text (*.txt, *.md, *.rst, also compressed), for instance Debian's linux-doc. Its documents become lines of
one JSON file, which every contender takes, on one core:
    encode_batch        the tokenizer alone, 64 documents at a time, already in memory
    encode_batch_fast   the same without the places of tokens in the text, which is what rskd calls
    rskd pack           all of it: reading, hashing, tokenizing, windows, Parquet; without Ray
    datatrove           one pass: read, tokenize, shuffle, write; then merge its files (PYTHON has it installed)
Each run is a process of its own; the contenders take turns, since other work on a machine slows the processor time,
too. Processor seconds are of process and children, from when the imports and the tokenizer are loaded; what loading
them takes is given apart. The peak is resident memory, imports included.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import Row, argument_parser, markdown_table, ratio, write_results

from rskd.config import SourceConfig, load_config
from rskd.corpus.sources import group_files, list_files, read_documents
from rskd.models.files import resolve_teacher

ALONE = ("encode_batch", "encode_batch_fast")
CONTENDERS = (*ALONE, "rskd pack", "datatrove")
ROUNDS = 3
BATCH = 64
# Of --one, in a Python that has datatrove and neither rskd nor torch.
DATATROVE = """
import json, resource, sys
from pathlib import Path
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer, DocumentTokenizerMerger

def usages():
    return [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]

def processor_seconds():
    return sum(usage.ru_utime + usage.ru_stime for usage in usages())

_, text, teacher, folder = json.loads(sys.argv[2])
tokenized, merged, text = folder + "/tokenized", folder + "/merged", Path(text)
tokenizer = teacher + "/tokenizer.json"
documents = JsonlReader(str(text.parent), glob_pattern=text.name)
writer = DocumentTokenizer(tokenized, tokenizer_name_or_path=tokenizer, eos_token="<|endoftext|>", seed=0)
writer.tokenizer
started = processor_seconds()
writer.run(documents.run(), 0, 1)
DocumentTokenizerMerger(tokenized, merged, save_filename="all", seed=0, progress=False).run()
tokens = sum(path.stat().st_size for path in Path(merged).glob("*.ds")) // 2
seconds = processor_seconds() - started
peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
print(json.dumps({"tokens": tokens, "seconds": seconds, "start_up": started, "peak": peak}))
"""


def processor_seconds() -> float:
    """Of this process and of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def measured(contender: str, text: Path, teacher: str, folder: Path) -> Row:
    """What one run in this process took."""
    start_up, tokens, seconds = encode(contender, text, teacher) if contender in ALONE else pack(text, teacher, folder)
    return {"tokens": tokens, "seconds": seconds, "start_up": start_up, "peak": peak_mib()}


def peak_mib() -> float:
    """Resident memory of this process at most; `ru_maxrss` would be that of the process that started it, too."""
    return int(re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) / 1024


def encode(contender: str, text: Path, teacher: str) -> tuple[float, int, float]:
    from rskd.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(teacher).backend_tokenizer
    tokenizer.encode_special_tokens = True
    documents = [json.loads(line)["text"] for line in text.read_text().splitlines()]
    call, started, tokens = getattr(tokenizer, contender), processor_seconds(), 0
    for first in range(0, len(documents), BATCH):
        encodings = call(documents[first : first + BATCH], add_special_tokens=False)
        tokens += sum(len(encoding.ids) for encoding in encodings)
    return started, tokens, processor_seconds() - started


def pack(text: Path, teacher: str, folder: Path) -> tuple[float, int, float]:
    from rskd.jobs.pack import pack_corpus
    from rskd.models.tokenizer import load_tokenizer

    source = json.dumps({"kind": "jsonl", "uri": str(text)})
    values = {
        "corpus.source": source,
        "corpus.max_windows": "null",
        "corpus.windows_per_part": 256,
        "storage.root": folder,
        "teacher.model": teacher,
        "teacher.revision": "null",
        "ray.enabled": "false",
        "train.workers": 0,
        "tracking.enabled": "false",
    }
    config = load_config("flows/configs/demo.yaml", [f"{key}={value}" for key, value in values.items()])
    load_tokenizer(teacher)
    started = processor_seconds()
    tokens = pack_corpus(config)["tokens"]
    return started, tokens, processor_seconds() - started


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--text", type=Path, help="a folder of text of 5M tokens or more")
    parser.add_argument("--datatrove", type=Path, help="a Python in which datatrove is installed")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        contender, *paths = json.loads(args.one)
        print(json.dumps(measured(contender, Path(paths[0]), paths[1], Path(paths[2]))))
        return
    source = SourceConfig(kind="text", uri=str(args.text))
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "text.jsonl")
        with text.open("w") as file:
            for group in group_files(list_files(source), kind="text"):
                file.writelines(json.dumps({"text": document}) + "\n" for document in read_documents(source, group))
        config = load_config("flows/configs/demo.yaml", [f"storage.root={folder}"])
        rows = compared(text, resolve_teacher(config), args.datatrove)
    print(markdown_table(rows))
    write_results(args.out, "pack", f"Packing {text_size(rows)} of SmolLM2's tokens on one core", {"Packing": rows})


def text_size(rows: list[Row]) -> str:
    return f"{rows[0]['tokens'] / 1e6:.1f}M"


def compared(text: Path, teacher: str, datatrove_python: Path | None) -> list[Row]:
    """A row for each contender: medians of the rounds."""
    contenders = [name for name in CONTENDERS if name != "datatrove" or datatrove_python]
    runs: dict[str, list[Row]] = {name: [] for name in contenders}
    for _ in range(ROUNDS):
        for name in contenders:
            command = [str(datatrove_python), "-c", DATATROVE] if name == "datatrove" else [sys.executable, __file__]
            runs[name].append(in_a_process(command, name, text, teacher))
            print(name, runs[name][-1], file=sys.stderr, flush=True)
    seconds = {name: [run["seconds"] for run in runs[name]] for name in contenders}
    return [
        {
            "contender": name,
            "tokens": runs[name][0]["tokens"],
            "processor s": statistics.median(seconds[name]),
            "to encode_batch": ratio(seconds[name], seconds["encode_batch"]),
            "to encode_batch_fast": ratio(seconds[name], seconds["encode_batch_fast"]),
            "start-up, s": statistics.median(run["start_up"] for run in runs[name]),
            "peak MiB": statistics.median(run["peak"] for run in runs[name]),
        }
        for name in contenders
    ]


def in_a_process(command: list[str], contender: str, text: Path, teacher: str) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        call = [*command, "--one", json.dumps([contender, str(text), teacher, folder])]
        environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(call, stdout=subprocess.PIPE, text=True, check=True, env=environment)
        return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
