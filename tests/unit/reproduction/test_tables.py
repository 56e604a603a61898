from rskd.config import validate_config
from rskd.reproduction.methods import CACHES, METHODS
from rskd.reproduction.setting import _student, cell_name
from rskd.reproduction.tables import TABLES, cells


def test_every_row_has_its_method_and_every_method_its_cache_and_its_row():
    rows = {row.method for table in TABLES.values() for row in table.rows}
    assert rows == set(METHODS)
    assert {method.cache for method in METHODS.values()} - {None} == set(CACHES)


def test_a_cell_that_several_tables_need_comes_once_with_the_most_seeds():
    both = cells({name: TABLES[name] for name in ("table1", "table12")})
    assert len(both) == len(set(both))
    assert [seed for method, seed in both if method == "ce"] == [0, 1, 2]
    assert [seed for method, seed in both if method == "divergence-l1"] == [0]
    assert [seed for _, seed in both] == sorted(seed for _, seed in both)


def test_all_cells_are_students_of_one_valid_configuration():
    every = cells(TABLES)
    config = validate_config(
        {
            "name": "students",
            "corpus": {"source": {"kind": "python_docs"}},
            "teacher": {"model": "anything"},
            "samplings": {
                name: {**cache.sampling, **({"num_samples": 8} if cache.unique_tokens else {})}
                for name, cache in CACHES.items()
            },
            "students": {cell_name(cell): _student(cell) for cell in every},
        }
    )
    spec = config.student_specs["ratio-2-ce-0.1-seed-0"]
    assert (spec.sampling, spec.objective.hard_easy_ratio, spec.objective.ce_weight) == ("random-12", 2.0, 0.1)
    assert config.cache_samplings["random-12"].statistics == ("label_logprob",)
