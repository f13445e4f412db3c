"""Where a daemon says what happens to it when nobody listens any more: syslog."""

from __future__ import annotations


class Logger:
    """Any thread. Raises nothing."""

    def __init__(self, target: str, id: str) -> None:
        self._target = target

    def _log(self, priority: str, text: str) -> None:
        import syslog

        syslog.openlog("pyerofs", syslog.LOG_PID, syslog.LOG_DAEMON)
        syslog.syslog(getattr(syslog, priority), f"{self._target}: {text}")

    def info(self, text: str) -> None:
        self._log("LOG_INFO", text)

    def warning(self, text: str) -> None:
        self._log("LOG_WARNING", text)

    def error(self, text: str) -> None:
        self._log("LOG_ERR", text)
