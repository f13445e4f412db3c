"""Render the configuration: effective values with their origin, and an example file with every option."""

from __future__ import annotations

import re
from itertools import groupby
from typing import TYPE_CHECKING

from .file import SYSTEM_FILE, TYPES, Config
from .options import ROWS, MountOptions, OptionRow, ReadOptions, chosen, is_secret

if TYPE_CHECKING:
    from ..oci.location import Location


def render(config: Config, location: Location | None = None) -> str:
    """Render every option with its value for images such as the one there, and where that comes from.

    The result is a configuration file itself, but that secrets are shown as ***.
    """
    layers = config.layers_for(location)
    counts = chosen((), [layer.values for layer in layers])
    lines = [f"# {path}: {state}" for path, state in config.files]
    for section, rows in _sections():
        lines += ["", f"[{section}]"]
        for row in rows:
            if row.field in counts:
                layer = layers[counts[row.field][1]]
                texts = [value for name, value in layer.values if name == row.name]
                shown = ["***" if is_secret(row.name, text) else text for text in texts]
                where = f'{layer.origin} [registry."{layer.registry}"]' if layer.registry else layer.origin
                lines.append(f"{_key(row)} = {_values(row, shown)}  # {where}")
            elif default := _default(row):
                lines.append(f"{_key(row)} = {_toml(row, default)}  # default")
            else:
                lines.append(f"# {_key(row)}: not set")
    return "\n".join(lines)


def example() -> str:
    """Return a configuration file that sets nothing yet: every option with its meaning and its default."""
    lines = [
        f"# Defaults for pyerofs's options: {SYSTEM_FILE}, for users also ~/.config/pyerofs/config.toml.",
        "# What is written after -o wins; `pyerofs config` shows what counts.",
        '# [registry."quay.io".oci] instead of [oci]: for the images of one registry.',
    ]
    for section, rows in _sections():
        lines += ["", f"[{section}]"]
        for row in rows:
            default = _default(row)
            placeholder = [re.sub(r"[\[\]=]", "", row.argument)]
            value = _toml(row, default) if default else _values(row, placeholder)
            lines += [f"# {row.text}", f"#{_key(row)} = {value}"]
    return "\n".join(lines)


def _sections() -> list[tuple[str, list[OptionRow]]]:
    rows = [row for row in ROWS if "." in row.name]
    return [(section, list(group)) for section, group in groupby(rows, lambda row: row.name.partition(".")[0])]


def _key(row: OptionRow) -> str:
    return row.name.partition(".")[2]


def _default(row: OptionRow) -> str:
    """As after -o; "" where it is nothing, or what the machine gives."""
    value = getattr(ReadOptions() if row.field in ReadOptions.__slots__ else MountOptions(), row.field)
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value or "")


def _values(row: OptionRow, texts: list[str]) -> str:
    return f"[{', '.join(_toml(row, text) for text in texts)}]" if row.many else _toml(row, texts[0])


def _toml(row: OptionRow, text: str) -> str:
    types, _ = TYPES[row.kind]
    if str not in types or (row.kind == "amount" and re.fullmatch(r"[0-9]+(\.[0-9]+)?", text)):
        return text
    escaped = re.sub(r'[\\"\x00-\x1f\x7f]', lambda found: f"\\u{ord(found[0]):04x}", text)
    return f'"{escaped}"'
