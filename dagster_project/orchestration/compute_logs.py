"""What steps print, kept in the lake: pods and their disks are gone when it is read.

Dagster's own manager for S3 brings boto3 and a second way to say where the object store is. This
one uses the lake, with its settings and its credentials.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Self

import dagster as dg
from dagster._core.storage.cloud_storage_compute_log_manager import (
    PollingComputeLogSubscriptionManager,
    TruncatingCloudStorageComputeLogManager,
)
from dagster._core.storage.compute_log_manager import CapturedLogSubscription, ComputeIOType
from dagster._core.storage.local_compute_log_manager import (
    IO_TYPE_EXTENSION,
    LocalComputeLogManager,
)
from dagster._serdes import ConfigurableClass, ConfigurableClassData

from dagster_project.failures import LakeError
from dagster_project.lake.store import Lake
from dagster_project.settings import get_settings

#: Where in the lake they lie, unless configured.
PREFIX = "_logs"

_logger = logging.getLogger("dagster.compute_log_manager")


class LakeComputeLogManager(TruncatingCloudStorageComputeLogManager, ConfigurableClass):
    """Captures on the local disk, and keeps in the lake once the step has ended.

    A lake that is away costs the log, never the step. What a step printed whose pod was killed is
    in the pod's own log alone.
    """

    def __init__(
        self, prefix: str = PREFIX, inst_data: ConfigurableClassData | None = None
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._prefix = prefix.strip("/")
        self._inst_data = inst_data

    @property
    def inst_data(self) -> ConfigurableClassData | None:
        return self._inst_data

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        return {"prefix": dg.Field(dg.StringSource, is_required=False, default_value=PREFIX)}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> Self:
        return cls(inst_data=inst_data, **config_value)

    @cached_property
    def _folder(self) -> str:
        return tempfile.mkdtemp(prefix="dagster-logs-")

    @cached_property
    def local_manager(self) -> LocalComputeLogManager:
        return LocalComputeLogManager(self._folder)

    @cached_property
    def _lake(self) -> Lake:
        return Lake(get_settings().lake)

    @property
    def upload_interval(self) -> int | None:
        # A thread that uploads while the step works would be in the way of its forks.
        return None

    def _key(self, log_key: Sequence[str], io_type: ComputeIOType, partial: bool = False) -> str:
        name = f"{'/'.join(log_key)}.{IO_TYPE_EXTENSION[io_type]}"
        return f"{self._prefix}/{name}{'.partial' if partial else ''}"

    def delete_logs(
        self, log_key: Sequence[str] | None = None, prefix: Sequence[str] | None = None
    ) -> None:
        self.local_manager.delete_logs(log_key=log_key, prefix=prefix)
        if log_key:
            keys = [self._key(log_key, io_type) for io_type in ComputeIOType]
        else:
            found = self._lake.list("/".join([self._prefix, *(prefix or ())]))
            keys = [item.key for item in found]
        self._lake.delete(keys)

    def download_url_for_type(self, log_key: Sequence[str], io_type: ComputeIOType) -> str | None:
        # By way of the webserver, which may read the lake where a person's browser may not.
        return "/".join(["/logs", *log_key, IO_TYPE_EXTENSION[io_type]])

    def display_path_for_type(self, log_key: Sequence[str], io_type: ComputeIOType) -> str:
        return self._lake.address(self._key(log_key, io_type))

    def cloud_storage_has_logs(
        self, log_key: Sequence[str], io_type: ComputeIOType, partial: bool = False
    ) -> bool:
        key = self._key(log_key, io_type, partial)
        return any(item.key == key for item in self._lake.list(key.rpartition("/")[0]))

    def _upload_file_obj(
        self,
        data: IO[bytes],
        log_key: Sequence[str],
        io_type: ComputeIOType,
        partial: bool = False,
    ) -> None:
        try:
            self._lake.replace(self._key(log_key, io_type, partial), data.read())
        except LakeError as error:
            _logger.warning("the log of %s is not kept: %s", "/".join(log_key), error)

    def download_from_cloud_storage(
        self, log_key: Sequence[str], io_type: ComputeIOType, partial: bool = False
    ) -> None:
        path = Path(
            self.local_manager.get_captured_local_path(
                log_key, IO_TYPE_EXTENSION[io_type], partial=partial
            )
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self._lake.read(self._key(log_key, io_type, partial)))

    def get_log_keys_for_log_key_prefix(
        self, log_key_prefix: Sequence[str], io_type: ComputeIOType
    ) -> Sequence[list[str]]:
        folder = "/".join([self._prefix, *log_key_prefix])
        end = f".{IO_TYPE_EXTENSION[io_type]}"
        names = [item.key[len(folder) + 1 :] for item in self._lake.list(folder)]
        return [
            [*log_key_prefix, name.removesuffix(end)]
            for name in names
            if name.endswith(end) and "/" not in name
        ]

    @cached_property
    def _subscriptions(self) -> PollingComputeLogSubscriptionManager:
        return PollingComputeLogSubscriptionManager(self)  # type: ignore[no-untyped-call]

    def on_subscribe(self, subscription: CapturedLogSubscription) -> None:
        self._subscriptions.add_subscription(subscription)

    def on_unsubscribe(self, subscription: CapturedLogSubscription) -> None:
        self._subscriptions.remove_subscription(subscription)

    def dispose(self) -> None:
        super().dispose()  # type: ignore[no-untyped-call]
        if "_subscriptions" in self.__dict__:
            self._subscriptions.dispose()
        if "_folder" in self.__dict__:
            shutil.rmtree(self._folder, ignore_errors=True)
