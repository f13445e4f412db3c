"""How much may come of a few bytes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pyerofs.errors import ImageError
from pyerofs.tar.allowance import Allowance


@pytest.mark.parametrize(("size", "limit", "most"), [
    (1, None, 1 << 30), (98_000, None, 1 << 30), (10 << 20, None, 2000 << 20), (98_000, 5, 5),
    (1 << 30, 5 << 40, 5 << 40),
])  # fmt: skip
def test_what_may_be_taken(size: int, limit: int | None, most: int) -> None:
    allowance = Allowance(size, limit)
    assert allowance.most == most
    allowance.check(most)
    allowance.take(most - 1)
    allowance.take(1)
    exceeding: tuple[Callable[[], object], ...] = (lambda: allowance.take(1), lambda: allowance.check(most + 1))
    for exceed in exceeding:
        with pytest.raises(ImageError, match=r"more than .*: if you trust the image, .*-o oci.unpacked_max=SIZE"):
            exceed()
