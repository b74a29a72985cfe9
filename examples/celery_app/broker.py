"""Where the messages go: to a Redis, or into a folder where there is none."""

from __future__ import annotations

import time
import uuid
from pathlib import Path
from typing import Any

from kombu import Connection
from kombu.transport import filesystem
from kombu.utils.json import dumps

REDIS = "redis://127.0.0.1:6379/0"
FOLDER = "folder://"


def settings(url: str) -> dict[str, Any]:
    """What Celery is to be told about the broker at *url*."""
    if not url.startswith(FOLDER):
        return {"broker_url": url, "result_backend": url if "redis" in url else "rpc://"}
    folder = url.removeprefix(FOLDER)
    return {
        "broker_url": "filesystem://localhost",
        "broker_transport": f"{__name__}:Folder",
        "broker_transport_options": {
            "data_folder_in": folder,
            "data_folder_out": folder,
            "control_folder": f"{folder}/control",
            "polling_interval": 0.05,
        },
        "result_backend": "rpc://",
    }


class Channel(filesystem.Channel):  # type: ignore[misc]
    """kombu's own writes a message where a worker may read it before all of it is there."""

    def _put(self, queue: str, payload: dict[str, Any], **kwargs: Any) -> None:
        unfinished = Path(self.data_folder_out, f"{time.time_ns()}_{uuid.uuid4()}.{queue}.part")
        unfinished.write_text(dumps(payload))
        unfinished.rename(unfinished.with_suffix(".msg"))


class Folder(filesystem.Transport):  # type: ignore[misc]
    Channel = Channel


def find(url: str | None, folder: str) -> str:
    """The broker at *url*; without one the Redis of this machine, if there is one, or *folder*.

    Ends the program where *url* does not answer.
    """
    if url is not None:
        trouble = what_is_wrong_with(url)
        if trouble is None:
            return url
        raise SystemExit(
            f"The broker at {shown(url)} does not answer: {trouble}\n"
            "Start one (`make services` installs and starts a Redis), name another one with "
            "--broker, or leave --broker out: then a folder is enough."
        )
    return REDIS if what_is_wrong_with(REDIS) is None else FOLDER + folder


def shown(url: str) -> str:
    """*url* without its password."""
    if url.startswith(FOLDER):
        return "files in " + url.removeprefix(FOLDER)
    return str(Connection(url).as_uri()) if "@" in url else url


def what_is_wrong_with(url: str) -> str | None:
    if url.startswith(FOLDER):
        return None if Path(url.removeprefix(FOLDER)).is_dir() else "there is no such folder"
    try:
        with Connection(url, connect_timeout=2) as connection:
            connection.ensure_connection(max_retries=1, interval_start=0)
    except Exception as error:
        return str(error) or type(error).__name__
    return None
