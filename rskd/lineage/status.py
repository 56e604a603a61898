"""How far a distillation is: for each stage whether its output is done, stale, unfinished or missing, and what a run
of that stage would do.

    pack ─► cache (each) ─► train (each) ─► evaluate ─► generate, judge (each model, if asked for) ─► report

Nothing is changed, and no model is loaded; the teacher's weights are read once, for their fingerprint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from rskd import records
from rskd.cache.manifest import HEAD_FILE, PARTS_FOLDER, committed_indices, newest_manifest, read_head
from rskd.config import DistillConfig
from rskd.corpus.packed_corpus import MANIFEST_FILE
from rskd.corpus.sources import Group, list_files, located, new_groups
from rskd.difference import first_difference
from rskd.errors import ConfigError, CorruptPartError, MissingOutputError, OutputError
from rskd.evaluation.answers import missing_parts
from rskd.evaluation.ratings import judge_recipe, read_judgements
from rskd.lineage.answers import Parts, digest_of_answers, find_model, models_that_answer, parts_of, prompt_sets
from rskd.lineage.cache import check_cache, check_parts
from rskd.lineage.corpus import open_corpus, packed_so_far
from rskd.lineage.evaluation import check_part, evaluated_students, evaluation_parts, open_held_out, report_digest
from rskd.lineage.inputs import Inputs
from rskd.lineage.student import changed_since, open_source, told
from rskd.models.digests import RESULT_FILE, check_sizes
from rskd.storage import Store

State = Literal["done", "stale", "unfinished", "missing"]
Then = Literal["skipped", "runs", "refused", "decided later"]


@dataclass(frozen=True)
class StageStatus:
    """One output: its state, what a run would do, and why."""

    stage: str  # as it is typed after `rskd`: pack, cache, train, evaluate, generate, judge, report
    name: str  # of the cache, student or model; "" where there is one output
    state: State
    then: Then
    reason: str = ""

    @property
    def output(self) -> str:
        """Stage and name, as `train ce`."""
        return f"{self.stage} {self.name}".strip()


def status(config: DistillConfig) -> list[StageStatus]:
    """The state of every output, in the order in which stages run.

    `then` is what a run of all stages does; "decided later" where that depends on what an earlier one makes. Raises
    ConfigError for a teacher that does not exist, or whose tokenizer does not fit.
    """
    inputs = Inputs(config)
    _ = inputs.corpus_head
    pack = _corpus(inputs)
    wanted = config.cache_samplings if config.wants_caches else ()
    caches = {name: _after(_cache(inputs, name), [pack]) for name in wanted}
    students = []
    for name, spec in config.student_specs.items():
        before = caches[spec.sampling] if spec.objective.kind == "sparse_kd" else pack
        students.append(_after(_student(inputs, name), [before]))
    evaluation = _after(_evaluation(inputs), [pack, *students])
    answers = _answers(inputs, [pack, *students])
    report = _after(_report(inputs), [evaluation, *answers])
    return [pack, *caches.values(), *students, evaluation, *answers, report]


def _after(found: StageStatus, before: Iterable[StageStatus]) -> StageStatus:
    """What a run does of which the stages before it are part."""
    awaited = next((one for one in before if one.then in ("runs", "decided later")), None)
    if awaited is None or found.then == "runs":
        return found
    if found.state in ("missing", "unfinished"):
        return replace(found, then="runs", reason="")
    return replace(found, then="decided later", reason=found.reason or f"after {awaited.output}")


def _refused(error: ConfigError | OutputError, stage: str, name: str = "", *, there: bool) -> StageStatus:
    """What a check that a stage begins with says of it."""
    state: State = "missing" if not there else "stale" if isinstance(error, OutputError) else "done"
    return StageStatus(stage, name, state, "refused", str(error))


def _corpus(inputs: Inputs) -> StageStatus:
    config = inputs.config
    there = all(Store(config.corpus_uri(split)).exists(MANIFEST_FILE) for split in ("train", "eval"))
    try:
        packed = packed_so_far(inputs)
        source = located(config.corpus.source)
        files = list_files(source, outputs=[config.storage.root, config.home], chat=config.corpus.kind == "chat")
        recorded = packed["train"].groups if packed else ()
        added = new_groups(map(Group.from_dict, recorded), files, source=source)
    except (ConfigError, OutputError) as error:
        return _refused(error, "pack", there=there)
    if packed is None:
        begun = Store(config.corpus_uri("train")).list(), Store(config.corpus_uri("eval")).list()
        return StageStatus("pack", "", "unfinished" if any(begun) else "missing", "runs")
    if added:
        files_added = sum(len(group.files) for group in added)
        return StageStatus("pack", "", "unfinished", "runs", f"{files_added:,} files of the source are not packed")
    return StageStatus("pack", "", "done", "skipped")


def _cache(inputs: Inputs, name: str) -> StageStatus:
    store = Store(inputs.config.cache_uri(name))
    if not store.exists(HEAD_FILE):
        return StageStatus("cache", name, "missing", "runs")
    committed = committed_indices(store.list(PARTS_FOLDER))
    try:
        list_files(located(inputs.config.corpus.source), chat=inputs.config.corpus.kind == "chat")
        head = read_head(store)
        if committed:  # a cache without parts begins again
            check_cache(inputs, name, head)
        newest = newest_manifest(store)
        corpus = _opened(lambda: open_corpus(inputs, "train"))
        if corpus is not None and newest is not None:
            check_parts(newest, corpus, store.uri)
    except (ConfigError, OutputError) as error:
        return _refused(error, "cache", name, there=True)
    expected = len(corpus.manifest.parts) if corpus is not None else None
    if newest is None or (expected is not None and len(committed) < expected):
        of = f"{len(committed):,} of {expected:,} parts" if expected else f"{len(committed):,} parts"
        return StageStatus("cache", name, "unfinished", "runs", of)
    return StageStatus("cache", name, "done", "skipped")


def _student(inputs: Inputs, name: str) -> StageStatus:
    store = Store(inputs.config.student_uri(name))
    try:
        record = records.read(store, RESULT_FILE)
        source = _opened(lambda: open_source(inputs, name))
        changed = changed_since(record, inputs, name, source) if record else None
    except (ConfigError, OutputError) as error:
        return _refused(error, "train", name, there=store.exists(RESULT_FILE))
    if record is None:
        begun = bool(Store(inputs.config.checkpoints_uri(name)).list())
        return StageStatus("train", name, "unfinished" if begun else "missing", "runs")
    if changed is not None:
        return StageStatus("train", name, "stale", "runs", f"was {told(changed)}")
    try:
        check_sizes(store, record)
    except (MissingOutputError, CorruptPartError) as error:
        return StageStatus("train", name, "unfinished", "runs", str(error))
    return StageStatus("train", name, "done", "skipped")


def _evaluation(inputs: Inputs) -> StageStatus:
    store = Store(inputs.config.home)
    there = Store(inputs.config.evaluation_uri).exists()
    try:
        parts = evaluation_parts(inputs, open_held_out(inputs), evaluated_students(inputs))
    except MissingOutputError as error:
        return StageStatus("evaluate", "", "stale" if there else "missing", "refused", str(error))
    except (ConfigError, OutputError) as error:
        return _refused(error, "evaluate", there=there)
    missing = []
    for part in parts:
        try:
            changed = check_part(store, part)
        except MissingOutputError as error:
            missing.append(error)
            continue
        if changed is not None:
            return StageStatus("evaluate", "", "stale", "runs", f"{part.file} was made with {changed}")
    if missing:
        state: State = "missing" if len(missing) == len(parts) else "unfinished"
        return StageStatus("evaluate", "", state, "runs", "" if state == "missing" else str(missing[0]))
    return StageStatus("evaluate", "", "done", "skipped")


def _answers(inputs: Inputs, before: Iterable[StageStatus]) -> list[StageStatus]:
    """Of each model that answers prompts its answers, and the verdicts on them; none where nothing is asked."""
    config, found = inputs.config, []
    for model in models_that_answer(config) if config.generate is not None else []:
        try:
            parts = parts_of(config, find_model(inputs, model), prompt_sets(config))
        except ConfigError as error:
            answers, parts = _refused(error, "generate", model, there=False), None
        except OutputError:  # a student is missing, or stale
            answers, parts = StageStatus("generate", model, "missing", "runs"), None
        else:
            answers = _generated(Store(config.answers_uri(model)), model, parts)
        found.append(_after(answers, before))
        if config.judge is not None:
            found.append(_after(_judged(config, model, parts), [answers]))
    return found


def _generated(store: Store, model: str, parts: Parts) -> StageStatus:
    wanted = sum(len(of_set) for of_set in parts.values())
    missing = sum(len(missing_parts(store, of_set)) for of_set in parts.values())
    if not missing:
        return StageStatus("generate", model, "done", "skipped")
    if missing < wanted:
        return StageStatus("generate", model, "unfinished", "runs", f"{wanted - missing} of {wanted} parts")
    others = bool(store.sizes(recursive=True))
    reason = "the model, the settings or the prompts have changed" if others else ""
    return StageStatus("generate", model, "stale" if others else "missing", "runs", reason)


def _judged(config: DistillConfig, model: str, parts: Parts | None) -> StageStatus:
    try:
        verdicts = read_judgements(Store(config.home)).get(model)
    except OutputError as error:
        return _refused(error, "judge", model, there=True)
    if verdicts is None:
        return StageStatus("judge", model, "missing", "runs")
    if parts is None or verdicts["answers"] != digest_of_answers(parts):
        return StageStatus("judge", model, "stale", "runs", "the answers have changed since then")
    assert config.judge is not None
    changed = first_difference({"judge": verdicts["judge"]}, {"judge": judge_recipe(config.judge)})
    if changed is not None:
        return StageStatus("judge", model, "stale", "runs", f"rated with {changed}")
    return StageStatus("judge", model, "done", "skipped")


def _report(inputs: Inputs) -> StageStatus:
    home, _, name = inputs.config.report_uri.rpartition("/")
    try:
        page = Store(home).read(name).decode()
    except MissingOutputError:
        return StageStatus("report", "", "missing", "runs")
    if f'content="{report_digest(inputs.config)}"' not in page:
        return StageStatus("report", "", "stale", "runs", "the configuration or the evaluation has changed since then")
    return StageStatus("report", "", "done", "runs")


def _opened(open_it: Callable[[], Any]) -> Any:
    """An output, if it is there."""
    try:
        return open_it()
    except MissingOutputError:
        return None
