from rskd.config import validate_config
from rskd.reproduction.methods import CACHES, METHODS, MISALIGNED, OURS, SIZES
from rskd.reproduction.setting import _student, cell_name
from rskd.reproduction.tables import TABLES, cells


def test_every_row_has_its_method_and_every_method_its_cache_and_its_row():
    rows = {row.method for table in TABLES.values() for row in table.rows}
    assert rows == set(METHODS)
    assert {method.cache for method in METHODS.values()} - {None, MISALIGNED} == set(CACHES)


def test_a_cell_that_several_tables_need_comes_once_with_the_most_seeds():
    both = cells([TABLES["table1"], TABLES["table12"]], {})
    assert len(both) == len(set(both))
    assert [seed for method, seed in both if method == "ce"] == [0, 1, 2]
    assert [seed for method, seed in both if method == "divergence-l1"] == [0]
    assert [seed for _, seed in both] == sorted(seed for _, seed in both)


def test_a_method_has_more_seeds_where_its_tables_have_less():
    usual, more = (cells([TABLES["table1"], TABLES["table12"]], seeds) for seeds in ({}, {"ce": 2, "random-12": 5}))
    assert set(more) - set(usual) == {("random-12", seed) for seed in (1, 2, 3, 4)}
    assert set(usual) < set(more)


def test_all_cells_are_students_of_one_valid_configuration():
    every = cells(TABLES.values(), {})
    caches = {
        name: {**cache.sampling, **({"num_samples": 8} if cache.unique_tokens else {})}
        for name, cache in CACHES.items()
    }
    sizes = {size: {"student": {"preset": "100m"}, "train": {"steps": 7}} for size in SIZES}
    config = validate_config(
        {
            "name": "students",
            "corpus": {"source": {"kind": "python_docs"}},
            "teacher": {"model": "anything"},
            "samplings": {**caches, MISALIGNED: caches[OURS]},
            "students": {cell_name(cell): _student(cell, sizes) for cell in every},
        }
    )
    spec = config.student_specs["ratio-2-ce-0.1-seed-0"]
    assert (spec.sampling, spec.objective.hard_easy_ratio, spec.objective.ce_weight) == ("random-12", 2.0, 0.1)
    assert config.cache_samplings["random-12"].statistics == ("label_logprob",)
    assert config.student_specs["misaligned-12-seed-2"].train.allow_misaligned
    assert not config.student_specs["random-12-seed-2"].train.allow_misaligned
    of_size = config.student_specs["random-12-size-1-seed-0"]
    assert (of_size.student.preset, of_size.train.steps, of_size.sampling) == ("100m", 7, OURS)
