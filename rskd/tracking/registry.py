"""The registry: students as versions of one registered model, and the aliases that say which of them is in use.

    student ─► register ─► version 7 (tags: verdict, reason, what it was made from)
                 promote ─► champion: 7, previous: 4        rollback ─► champion: 4, previous: 7

A version is one set of weights: it is known by the digest of its files, and a repeat makes no second one. MLflow sets
an alias without looking at what it was, so promotions exclude each other where the database is a local file, and every
alias is read back.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from rskd import records
from rskd.config import DistillConfig
from rskd.errors import ConfigError, RskdError
from rskd.models.local_copies import kept_copies, new_directory
from rskd.tracking.connection import (
    client_of,
    created_once,
    explained,
    is_absent,
    tracking_uri_of,
    tracking_uri_of_root,
)
from rskd.tracking.runs import DIGEST, Run

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

REGISTERED = "models:/"  # how the name of a registered model begins
CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
_LONGEST_TAG = 5000  # MLflow's limit


@dataclass(frozen=True)
class Version:
    """One version of a registered model; `source` is the folder of its files, as MLflow calls it."""

    model: str
    version: int
    source: str
    tags: dict[str, str]
    created: int  # ms since 1970

    @property
    def digest(self) -> str:
        """sha256 of its files."""
        return self.tags.get(DIGEST, "")


class Registry:
    """The versions of the registered model `name` in the MLflow at `tracking_uri`. Any failure is a ConfigError."""

    def __init__(self, tracking_uri: str, name: str):
        self.tracking_uri, self.name = tracking_uri, name

    @classmethod
    def of(cls, config: DistillConfig) -> Registry:
        """That of a configuration: `promotion.model`, or the distillation's own name."""
        if not config.tracking.enabled:
            raise ConfigError("tracking.enabled=false: promotions are kept in MLflow, set it to true")
        return cls(tracking_uri_of(config), config.registered_model)

    @classmethod
    def at(cls, tracking_uri: str | None, name: str) -> Registry:
        """That of a registered model which is there; without a URI in the MLflow beside .rskd.

        Raises ConfigError for one that is not. Nothing is created by asking.
        """
        registry = cls(tracking_uri or tracking_uri_of_root(".rskd"), name)
        if re.search(r"[/:'\"]", name) or not registry.versions():
            raise ConfigError(f"{registry.tracking_uri} has no registered model {name}: correct the name or the URI")
        return registry

    def version(self, alias: str) -> Version | None:
        """The version with this alias; None where there is none."""
        from mlflow.exceptions import MlflowException

        if is_absent(self.tracking_uri):
            return None
        with explained(self.tracking_uri, writing=False):
            try:
                return _version(self._client.get_model_version_by_alias(self.name, alias))
            except MlflowException as error:
                if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    return None
                raise

    def challenger(self) -> Version:
        """The version that was judged last and is not the champion. Raises ConfigError where there is none."""
        found = self.version(CHALLENGER)
        if found is None:
            raise ConfigError(f"registered model {self.name} has no challenger: name a version")
        return found

    def summary(self) -> dict[str, Any]:
        """Version, source, verdict and reason of what has an alias, and how many versions there are."""
        by_alias = {alias: self.version(alias) for alias in (CHAMPION, CHALLENGER, PREVIOUS)}
        return {
            "model": self.name,
            "versions": len(self.versions()),
            **{
                alias: version
                and {
                    "version": version.version,
                    "source": version.source,
                    "verdict": version.tags.get("rskd.verdict"),
                    "reason": version.tags.get("rskd.reason"),
                    "digest": version.digest,
                }
                for alias, version in by_alias.items()
            },
        }

    def versions(self) -> list[Version]:
        """All of them, the newest first."""
        if is_absent(self.tracking_uri):
            return []
        with explained(self.tracking_uri, writing=False):
            found = self._client.search_model_versions(f"name = '{self.name}'", order_by=["version_number DESC"])
        return [_version(version) for version in found]

    def register(
        self, uri: str, digest: str, *, name: str, run: Run, tags: Mapping[str, str], description: str
    ) -> Version:
        """The version of the student `name` at `uri`, whose files have this digest: made the first time, tagged anew.

        Its files are those that were logged when it was trained, or else are logged by `run`.
        """
        with self._exclusively():
            known = next((version for version in self.versions() if version.digest == digest), None)
            if known is None:
                known = self._create(uri, digest, name=name, run=run)
            with explained(self.tracking_uri):
                self._client.update_model_version(self.name, str(known.version), description)
                for key, value in tags.items():
                    self._client.set_model_version_tag(self.name, str(known.version), key, value[:_LONGEST_TAG])
                return _version(self._client.get_model_version(self.name, str(known.version)))

    def _create(self, uri: str, digest: str, *, name: str, run: Run) -> Version:
        from mlflow.exceptions import MlflowException

        with explained(self.tracking_uri):
            model = run.logged_model(digest)
            if model is None:
                run.model(uri, name=name, digest=digest)
                model = run.logged_model(digest)
            if model is None:
                raise RskdError(f"MLflow at {self.tracking_uri} does not keep student {uri}: see the warning above")
            try:
                self._client.create_registered_model(self.name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            return _version(
                self._client.create_model_version(
                    self.name,
                    source=model.artifact_location,  # models:/ID would be looked up in MLflow's global store
                    run_id=model.source_run_id,
                    model_id=model.model_id,
                    tags={DIGEST: digest},
                )
            )

    def promote(self, version: int) -> Version:
        """Make a version the champion, and the champion of before `previous`; the same again changes nothing."""
        with self._exclusively():
            return self._crown(version, self.version(CHAMPION))

    def promote_over(self, champion: Version | None, version: int) -> Version:
        """`promote` a version that was judged against `champion`. Raises RskdError where that is not champion now."""
        with self._exclusively():
            current = self.version(CHAMPION)
            if _number(current) != _number(champion):
                raise RskdError(
                    f"version {version} of {self.name} was judged against version {_number(champion)}, but version "
                    f"{_number(current)} is the champion now: run it again"
                )
            return self._crown(version, current)

    def _crown(self, version: int, current: Version | None) -> Version:
        new = self.get(version)
        if current is not None and current.version != version:
            self.set_alias(PREVIOUS, current.version)
        self.set_alias(CHAMPION, version)
        return new

    def rollback(self) -> Version:
        """Make the champion of before the champion again. Raises ConfigError where there is none."""
        with self._exclusively():
            current, previous = self.version(CHAMPION), self.version(PREVIOUS)
            if current is None or previous is None:
                raise ConfigError(f"registered model {self.name} has no champion before this one: promote one first")
            self.set_alias(PREVIOUS, current.version)
            self.set_alias(CHAMPION, previous.version)
        return previous

    def download(self, version: Version) -> str:
        """A local folder with its files: where MLflow keeps them, or a copy that is made the first time."""
        from mlflow.artifacts import download_artifacts

        uris = {"artifact_uri": version.source, "tracking_uri": self.tracking_uri}
        if urlsplit(version.source).scheme in ("", "file"):
            with explained(self.tracking_uri, writing=False):
                return download_artifacts(**uris)
        copy = kept_copies("registered") / f"{version.model}-{version.version}-{records.digest(uris)[:12]}"
        if not copy.exists():
            with new_directory(copy) as folder, explained(self.tracking_uri, writing=False):
                download_artifacts(**uris, dst_path=str(folder))
        return str(copy / version.source.rsplit("/", 1)[-1])

    @contextmanager
    def _exclusively(self) -> Iterator[None]:
        """One process at a time, where MLflow keeps its runs in a local file."""
        with explained(self.tracking_uri), created_once(self.tracking_uri):
            yield

    def get(self, version: int) -> Version:
        """A version by its number."""
        versions = {one.version: one for one in self.versions()}
        if version not in versions:
            known = ", ".join(map(str, versions)) or "none"
            raise ConfigError(
                f"registered model {self.name} has no version {version} (it has {known}): name one of them"
            )
        return versions[version]

    def set_alias(self, alias: str, version: int) -> None:
        """Give a version an alias, and read it back."""
        with explained(self.tracking_uri):
            self._client.set_registered_model_alias(self.name, alias, str(version))
        found = self.version(alias)
        if found is None or found.version != version:
            now = "none" if found is None else f"version {found.version}"
            raise RskdError(
                f"alias {alias} of {self.name} was set to version {version} and is {now}: another process promotes, "
                "run it again"
            )

    @property
    def _client(self):
        return client_of(self.tracking_uri)


def local_model(config: DistillConfig, model: str) -> str:
    """A local folder with the files of `models:/NAME@ALIAS` or `models:/NAME/VERSION`; any other model as it is.

    Raises ConfigError for one that is not in the MLflow of the configuration.
    """
    if not model.startswith(REGISTERED):
        return model
    found = re.fullmatch(rf"{REGISTERED}([^/@]+)(?:@([^/@]+)|/(\d+))", model)
    if found is None:
        raise ConfigError(f"model {model} is no registered model: write models:/NAME@champion or models:/NAME/VERSION")
    name, alias, number = found.groups()
    registry = Registry(tracking_uri_of(config), name)
    version = registry.version(alias) if alias else registry.get(int(number))
    if version is None:
        raise ConfigError(f"model {model}: registered model {name} has no {alias}: promote a version, or name one")
    return registry.download(version)


def _number(version: Version | None) -> int | None:
    return version and version.version


def _version(found: ModelVersion) -> Version:
    return Version(
        model=found.name,
        version=int(found.version),
        source=str(found.source),
        tags=dict(found.tags),
        created=int(found.creation_timestamp),
    )
