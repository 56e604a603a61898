from pathlib import Path

import pytest

from infra.stack.settings import StackSettings, load_settings
from rskd.errors import ConfigError

SHIPPED = Path(__file__).parents[3] / "infra" / "stack.toml"


def test_the_file_that_is_shipped_says_the_defaults(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert load_settings(SHIPPED) == StackSettings(folder=tmp_path / ".rskd" / "stack")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prefect = {prot = 1}", "prefect.prot: unknown key, remove it or correct its spelling"),
        ("mlflow = {port = 80}", "mlflow.port: input should be greater than or equal to 1024, not 80: correct it"),
        ("mlflow = {port = true}", "mlflow.port: true is not a number: write one"),
        ('optional = ["grafana"]', "optional.0: input should be 'object-store', 'ray' or 'prometheus', not 'grafana'"),
        ('prometheus = {keep = "long"}', "prometheus.keep: "),
        ("folder =", "is no TOML ("),
        (
            'prefect = {database = "postgresql+asyncpg://me:secret@db/prefect"}',
            "is a URI with a password: leave it out",
        ),
    ],
)
def test_what_is_wrong_is_named_in_a_line(tmp_path, text, message):
    file = tmp_path / "stack.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as refused:
        load_settings(file)
    assert message in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_file_that_is_missing(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.toml cannot be read \(No such file or directory\)"):
        load_settings(tmp_path / "none.toml")


def test_a_folder_too_deep_for_a_socket(tmp_path):
    file = tmp_path / "stack.toml"
    file.write_text(f'folder = "/{"x" * 100}"')
    with pytest.raises(ConfigError, match="too long a path for a Unix socket: shorten it"):
        load_settings(file)
