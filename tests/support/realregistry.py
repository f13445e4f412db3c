"""DockerRegistry that also tells what it was asked."""

from __future__ import annotations

import http.client
import re
import uuid
from typing import Any

from tests.support.dockerregistry import DockerRegistry
from tests.support.scene import until


class LoggingRegistry(DockerRegistry):
    def requests(self, part: str = "/blobs/") -> list[str]:
        """The GETs so far ("GET /v2/...") whose path has this part. They are logged when they have ended, in order, so
        a request of our own tells when all are in."""
        mark = f"/v2/mark/{uuid.uuid4().hex}"
        connection = http.client.HTTPConnection(self.host, timeout=10)
        connection.request("GET", mark)
        connection.getresponse().read()
        connection.close()
        until(lambda: mark in self._logged(), "that the registry has written its log")
        return [line for line in re.findall(r'"(GET /v2/\S*) HTTP', self._logged()) if part in line]

    def _logged(self) -> str:
        return self.log.read_text(errors="replace")

    def _config(self) -> dict[str, Any]:
        config: dict[str, Any] = super()._config()
        config["log"] = {"level": "warn", "accesslog": {"disabled": False}}
        return config
