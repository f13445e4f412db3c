"""Builds pyerofs._core, the cffi module around the C core; with PYEROFS_SANITIZE=address or thread for a sanitizer."""

from __future__ import annotations

import os
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
# The compiler's directives are not cffi's.
HEADER = "".join(
    line
    for line in (HERE / "pyerofs.h").read_text(encoding="ascii").splitlines(keepends=True)
    if not line.startswith("#")
)
SOURCES = sorted(HERE.glob("*/*.c"))

warnings = ["-Wall", "-Wextra", "-Wshadow", "-Wvla", "-Wconversion", "-Wmissing-prototypes", "-Wstrict-prototypes"]
warnings += ["-Wundef"]
if os.environ.get("CI") == "true":
    warnings.append("-Werror")
flags = ["-std=gnu11", "-O2", "-g", *warnings, "-fvisibility=hidden", "-pthread"]
sanitizer = os.environ.get("PYEROFS_SANITIZE")
sanitizers = {
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "thread": ["-fsanitize=thread"],
}
extra = [*sanitizers[sanitizer], "-O1", "-fno-omit-frame-pointer"] if sanitizer else []

ffi = FFI()
ffi.cdef(HEADER)
ffi.set_source(
    "pyerofs._core",
    # cffi declares no prototype of the module's own function.
    '#pragma GCC diagnostic ignored "-Wmissing-prototypes"\n#include "pyerofs.h"\n',
    sources=[os.path.relpath(path) for path in SOURCES],
    include_dirs=[str(HERE)],
    depends=[str(path) for path in sorted(HERE.rglob("*.h"))],
    libraries=["z"],
    extra_compile_args=flags + extra,
    extra_link_args=["-pthread", *extra],
)

if __name__ == "__main__":
    ffi.compile(verbose=True)
