"""Many distillations in a root, each a copy of a finished one with as many students as wanted."""

from __future__ import annotations

import shutil
from pathlib import Path

from rskd import records
from rskd.evaluation import passages, window_values
from rskd.evaluation.results import PASSAGES, WINDOW_VALUES, read_table, write_table
from rskd.models.digests import RESULT_FILE
from rskd.storage import Store
from rskd.student.checkpoint import LOG_FILE


def copy_distillation(finished: Path, root: Path, *, distillations: int, students: int, steps: int) -> None:
    """Make `distillations` folders in `root` of the one at `finished`, whose student `kd` each student is a copy of."""
    source = Store(str(finished))
    evaluation = records.read(source, "evaluation.json")
    record = records.read(source.child("students/kd"), RESULT_FILE)
    assert evaluation is not None
    assert record is not None
    [log, *_] = (finished / "students" / "kd" / LOG_FILE).read_text().splitlines()
    names = [f"kd-{number}" for number in range(students)]
    data = {}
    for kind, module in {WINDOW_VALUES: window_values, PASSAGES: passages}.items():
        models = module.from_parquet(read_table(source, kind, evaluation) or b"")
        data[kind] = module.to_parquet({"teacher": models["teacher"]} | dict.fromkeys(names, models["kd"]))
    evaluation["models"] = {"teacher": evaluation["models"]["teacher"]} | dict.fromkeys(
        names, evaluation["models"]["kd"]
    )
    evaluation["recipe"]["students"] = dict.fromkeys(names, records.digest(record))
    for number in range(distillations):
        home = Store(f"{root}/made-{number:03d}")
        for folder in ("corpus", "caches"):
            shutil.copytree(finished / folder, f"{home.path}/{folder}", ignore=shutil.ignore_patterns("*.parquet"))
        for name in names:
            student = home.child(f"students/{name}")
            records.write(student, RESULT_FILE, record)
            student.write(LOG_FILE, "\n".join([log] * steps).encode())
        evaluation |= {kind: write_table(home, kind, table) for kind, table in data.items()}
        records.write(home, "evaluation.json", evaluation)
