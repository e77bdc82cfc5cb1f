"""Settings: where PrefLab runs. Every environment variable is read here, once, and refused when wrong."""

import os
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from app.errors import AppError, field_messages

PREFIX = "PREFLAB_"
# Read by the test suite and the set-up script, not by the app; listed so that a typing mistake is still noticed.
FOREIGN = {"PREFLAB_REQUIRE", "PREFLAB_SHARED_DATA"}


class Settings(BaseModel):
    """One field per environment variable `PREFLAB_<NAME>`; docs/configuration.md lists them from here."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: Path = Field(
        Path(".preflab"), description="Folder of everything PrefLab stores: database, files, checkpoints."
    )
    database_url: str = Field("", description="SQLAlchemy URL; empty means SQLite in the data folder.")
    broker_url: str = Field("", description="Celery broker URL; empty means the bundled valkey-server.")
    host: str = Field("127.0.0.1", description="Address the web app listens on.")
    port: int = Field(8123, ge=1, le=65535, description="Port the web app listens on.")
    public_url: str = Field("", description="Address people use, when it differs from http://host:port.")
    allowed_hosts: str = Field("", description="Comma-separated extra host names accepted in the Host header.")
    is_cookie_secure: bool = Field(False, description="Send the login cookie over HTTPS only.")
    secret_key: str = Field("", description="Key that encrypts stored API keys; empty means a file in the data folder.")
    slots: str = Field(
        "",
        description="Comma-separated GPU slots of this worker, cuda:0+1 for two GPUs; empty means one per GPU, or CPU.",
    )
    accelerate_config: str = Field(
        "",
        description="Your accelerate file (yaml): each training run is then started as several processes.",
    )
    worker_queues: str = Field(
        "gpu,io,cpu", description="Comma-separated queues that a worker process takes runs from: gpu, io, cpu."
    )
    lease_s: float = Field(
        30, ge=1, le=3600, description="Seconds without a heartbeat after which a run is taken over."
    )
    max_deaths: int = Field(3, ge=1, le=20, description="Times a run may kill its process before it is failed.")
    private_endpoints: bool = Field(
        True, description="Allow judge and model endpoints on loopback and private addresses (a local vLLM)."
    )
    upload_mb: int = Field(512, ge=1, description="Largest upload in megabytes.")
    log_level: str = Field("INFO", description="DEBUG, INFO, WARNING or ERROR.")

    @field_validator("log_level")
    @classmethod
    def _known_level(cls, value: str) -> str:
        if value.upper() not in {"DEBUG", "INFO", "WARNING", "ERROR"}:
            raise ValueError("choose DEBUG, INFO, WARNING or ERROR")
        return value.upper()

    @field_validator("accelerate_config")
    @classmethod
    def _plain_data_parallel(cls, value: str) -> str:
        if value:
            read_accelerate(Path(value))
        return value

    @field_validator("allowed_hosts")
    @classmethod
    def _plain_hosts(cls, value: str) -> str:
        for name in value.split(","):
            if "*" in name.strip().removeprefix("*."):
                raise ValueError("a name such as lab.example.org, or *.example.org for all below it")
        return value

    @field_validator("database_url")
    @classmethod
    def _known_database(cls, value: str) -> str:
        value = value.replace("postgres://", "postgresql://", 1)
        if value.startswith("postgresql://"):
            value = value.replace("postgresql://", "postgresql+psycopg://", 1)
        if value and not value.startswith(("sqlite:///", "postgresql+psycopg://")):
            raise ValueError("use sqlite:///path or postgresql://user:password@host/name")
        return value

    @field_validator("broker_url")
    @classmethod
    def _known_broker(cls, value: str) -> str:
        if value and not value.startswith(("redis://", "rediss://", "redis+socket://", "amqp://", "amqps://")):
            raise ValueError("use redis://…, redis+socket://… or amqp://…")
        return value

    @property
    def accelerate(self) -> dict[str, Any]:
        """What accelerate's file says; empty where none is given."""
        return read_accelerate(Path(self.accelerate_config)) if self.accelerate_config else {}

    @property
    def database(self) -> str:
        """The database's URL, with the default filled in."""
        return self.database_url or f"sqlite:///{self.data_path / 'preflab.db'}"

    @property
    def data_path(self) -> Path:
        """The data folder as an absolute path."""
        return self.data.expanduser().resolve()

    @property
    def url(self) -> str:
        """The address to give to people."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return self.public_url.rstrip("/") or f"http://{host}:{self.port}"

    @property
    def broker(self) -> str:
        """The broker's URL: the one given, else the one that `preflab up` runs on this data folder, else empty."""
        note = self.data_path / "broker.url"
        return self.broker_url or (note.read_text().strip() if note.exists() else "")

    def folder(self, *parts: str | int) -> Path:
        """A folder below the data folder, made if missing."""
        path = self.data_path.joinpath(*(str(p) for p in parts))
        path.mkdir(parents=True, exist_ok=True)
        return path


def read_accelerate(path: Path) -> dict[str, Any]:
    """An accelerate file that several processes of one machine can train by; raises ValueError with the remedy."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(
            f"{path} cannot be read as yaml ({type(error).__name__}): `accelerate config` writes it"
        ) from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no settings: `accelerate config` writes them")
    way, n = found.get("distributed_type"), found.get("num_processes")
    if way not in {"MULTI_GPU", "MULTI_CPU"}:
        raise ValueError(
            f"distributed_type is {way}: choose MULTI_GPU or MULTI_CPU; sharded weights are not stored here"
        )
    if type(n) is not int or n < 2:
        raise ValueError("num_processes must be 2 or more; for one process leave this setting out")
    if found.get("num_machines", 1) != 1:
        raise ValueError("num_machines must be 1: a run stays on one machine; start a worker on each")
    return found


def read_settings(environ: dict[str, str]) -> Settings:
    """Settings from an environment; raises AppError that names each wrong variable."""
    given: dict[str, Any] = {}
    for name, value in environ.items():
        if name.startswith(PREFIX) and name not in FOREIGN and value != "":
            given[name.removeprefix(PREFIX).lower()] = value
    try:
        return Settings(**given)
    except ValidationError as error:
        lines = [
            f"{PREFIX}{name.upper()}: {', '.join(said)} (docs/configuration.md lists every setting)"
            for name, said in field_messages(error.errors()).items()
        ]
        raise AppError("The environment is wrong:\n  " + "\n  ".join(lines)) from error


@cache
def settings() -> Settings:
    """The process's settings, read on first use. Tests call `settings.cache_clear()`."""
    return read_settings(dict(os.environ))
