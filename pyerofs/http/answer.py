"""What an HTTP answer says, read with distrust: header fields, ranges, waiting times, error texts.

Pure functions of text, no I/O. None of the parsers raises, whatever the text: they give None for what they do not
understand. RFC 9110; errors of the OCI distribution specification, "Error Codes".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from ..errors import AuthError, NotFoundError, RegistryError
from .url import Url

REDIRECTS = frozenset((301, 302, 303, 307, 308))
_TEXT_MAX = 200  # characters of a server's own words that are repeated to the user
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_HTTP_DATE = re.compile(r"[A-Z][a-z]{2}, (\d\d) ([A-Z][a-z]{2}) (\d{4}) (\d\d):(\d\d):(\d\d) GMT", re.ASCII)
_ISO_DATE = re.compile(
    r"(\d{4})-?(\d\d)-?(\d\d)[Tt ](\d\d):?(\d\d)(?::?(\d\d)(?:\.\d+)?)?(?:[Zz]|([+-])(\d\d):(\d\d))", re.ASCII
)
_CONTENT_RANGE = re.compile(r"bytes\s+(\d{1,19})-(\d{1,19})/(\d{1,19}|\*)", re.ASCII | re.IGNORECASE)
_NUMBER = re.compile(r"\d{1,19}", re.ASCII)


class Headers:
    """The header fields of one answer; names in any case. Immutable once the answer has been read."""

    __slots__ = ("_fields",)

    def __init__(self) -> None:
        self._fields: list[tuple[str, str]] = []

    def add_line(self, line: bytes) -> None:
        """One line as it came over the wire; a line that begins with a blank continues the one before."""
        text = line.decode("latin-1").rstrip("\r\n")
        if text[:1] in (" ", "\t") and self._fields:
            name, value = self._fields[-1]
            self._fields[-1] = (name, f"{value} {text.strip()}")
            return
        name, colon, value = text.partition(":")
        if colon:
            self._fields.append((name.strip().lower(), value.strip()))

    def all(self, name: str) -> list[str]:
        name = name.lower()
        return [value for key, value in self._fields if key == name]

    def get(self, name: str) -> str | None:
        """Return the field's value, the last one where it came several times."""
        values = self.all(name)
        return values[-1] if values else None

    def combined(self, name: str) -> str | None:
        """All the field's values as one (RFC 9110 section 5.3), so that two that disagree are never taken for one."""
        return ", ".join(self.all(name)) or None

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._fields)


class Response(NamedTuple):
    """An answer, or (while its body is still to come) its head.

    `body`: at most the cap that was asked for; empty when a sink took it. `truncated`: there was more than that.
    `stopped`: the sink wanted no more. `received`: bytes that were handed to the sink.
    """

    url: Url
    status: int
    headers: Headers
    body: bytes = b""
    truncated: bool = False
    stopped: bool = False
    received: int = 0


def number(text: str | None) -> int | None:
    return int(text) if text and _NUMBER.fullmatch(text) else None


def content_range(text: str | None) -> tuple[int, int, int | None] | None:
    """First byte, last byte and total length (None for `*`) of a Content-Range, RFC 9110 section 14.4."""
    found = _CONTENT_RANGE.fullmatch(text or "")
    if not found:
        return None
    first, last, total = found.groups()
    return int(first), int(last), None if total == "*" else int(total)


def http_date(text: str | None) -> float | None:
    """Seconds since 1970 of an IMF-fixdate, the only form that servers may send (RFC 9110 section 5.6.7)."""
    found = _HTTP_DATE.fullmatch(text or "")
    if not found or found[2].lower() not in _MONTHS:
        return None
    day, _, year, hour, minute, second = found.groups()
    return _epoch(int(year), _MONTHS.index(found[2].lower()) + 1, int(day), int(hour), int(minute), int(second))


def iso_date(text: str | None) -> float | None:
    """Seconds since 1970 of an RFC 3339 time or of the compact form that presigned URLs use."""
    found = _ISO_DATE.fullmatch(text or "")
    if not found:
        return None
    year, month, day, hour, minute, second = (int(part or 0) for part in found.groups()[:6])
    sign, off_hours, off_minutes = found.groups()[6:]
    offset = (int(off_hours) * 3600 + int(off_minutes) * 60) * (-1 if sign == "-" else 1) if sign else 0
    at = _epoch(year, month, day, hour, minute, second)
    return None if at is None else at - offset


def _epoch(year: int, month: int, day: int, hour: int, minute: int, second: int) -> float | None:
    if not (1 <= month <= 12 and 1 <= day <= 31 and hour < 24 and minute < 60 and second <= 60):
        return None
    # Days of the proleptic Gregorian calendar, with the year beginning in March. `calendar` and `datetime` would cost
    # every start several milliseconds of import.
    year -= month <= 2
    days = 365 * year + year // 4 - year // 100 + year // 400 + (153 * ((month - 3) % 12) + 2) // 5 + day - 1 - 719468
    return float(days * 86400 + hour * 3600 + minute * 60 + second)


def retry_after(text: str | None, now: float) -> float | None:
    """Seconds to wait (never negative) of a Retry-After, given in seconds or as a date, RFC 9110 section 10.2.3."""
    seconds = number(text)
    if seconds is not None:
        return float(seconds)
    date = http_date(text)
    return None if date is None else max(0.0, date - now)


def presigned_lifetime(url: Url, now: float) -> float | None:
    """Seconds that a presigned URL lives from `now` (the signing server's time, if it is known); None: it says nothing.

    S3 and R2 (X-Amz-Date, X-Amz-Expires), Google (X-Goog-...), CloudFront and S3 v2 (Expires), Azure (se).
    """
    fields = _query(url.query)
    for vendor in ("x-amz-", "x-goog-"):
        signed, lifetime = iso_date(fields.get(vendor + "date")), number(fields.get(vendor + "expires"))
        if signed is not None and lifetime is not None:
            return signed + lifetime - now
    ends: float | None = number(fields.get("expires"))
    if ends is None:
        ends = iso_date(fields.get("se"))
    return None if ends is None else ends - now


def _query(query: str) -> dict[str, str]:
    pairs = (field.partition("=") for field in query.split("&"))
    return {name.lower(): value.replace("%3A", ":").replace("%3a", ":") for name, _, value in pairs}


def server_time(headers: Headers) -> float | None:
    """Return the answering server's clock, in seconds since 1970.

    Times that the server states are compared with it, so that no other clock has to be right.
    """
    return http_date(headers.get("date"))


def json_object(body: bytes) -> dict[str, object]:
    """Return the members of a JSON object; none for anything else."""
    import json

    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def error_code(response: Response) -> str:
    """Return the code of the first error that a registry names in its answer; "" for none."""
    errors = json_object(response.body).get("errors")
    code = errors[0].get("code") if isinstance(errors, list) and errors and isinstance(errors[0], dict) else None
    return code if isinstance(code, str) else ""


def explanation(response: Response) -> str:
    """Return the status and, where the body has it, the server's reason: one printable line of bounded length."""
    text = ""
    members = json_object(response.body)
    errors = members.get("errors")
    if isinstance(errors, list) and errors and isinstance(errors[0], dict):
        code, message = errors[0].get("code"), errors[0].get("message")
        text = ": ".join(part for part in (code, message) if isinstance(part, str) and part)
    else:  # token servers: OAuth 2 (RFC 6749 section 5.2) and Docker's
        text = next(
            (v for k in ("error_description", "error", "details", "message") if isinstance(v := members.get(k), str)),
            "",
        )
    text = "".join(c if c.isprintable() else " " for c in text)[:_TEXT_MAX].strip()
    return f"{response.status}, {text}" if text else str(response.status)


def failure(response: Response, what: str, now: float) -> RegistryError:
    """Return the error that a refusing answer stands for.

    `what` names the thing wanted, `now` is in seconds since 1970.
    """
    message = f"{response.url.authority}: {what}: {explanation(response)}"
    status = response.status
    if status in (401, 403):
        return AuthError(message)
    if status == 404:
        return NotFoundError(message)
    if status in (408, 429) or status >= 500:
        return RegistryError(message, temporary=True, retry_after=retry_after(response.headers.get("retry-after"), now))
    return RegistryError(message)
