"""The package's face: what `import pyerofs` offers, and what it costs."""

from __future__ import annotations

import ast
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import pyerofs
from pyerofs import errors

FUNCTIONS = {"inspect", "list", "mount", "open_blob", "reattach", "unmount"}


def tree(base: type[errors.PyerofsError]) -> set[str]:
    return {base.__name__}.union(*(tree(each) for each in base.__subclasses__() if each.__module__ == errors.__name__))


def test_the_face_is_the_functions_the_file_and_every_error() -> None:
    assert set(pyerofs.__all__) == FUNCTIONS | {"BlobFile", "Image", "__version__"} | tree(errors.PyerofsError)
    assert dir(pyerofs) == sorted(pyerofs.__all__)


@pytest.mark.parametrize("name", sorted(FUNCTIONS | {"BlobFile", "Image"}))
def test_each_name_is_documented_and_typed(name: str) -> None:
    found = getattr(pyerofs, name)
    assert inspect.getdoc(found)
    if name in FUNCTIONS:
        signature = inspect.signature(found)
        assert signature.return_annotation is not signature.empty
        assert all(each.annotation is not each.empty for each in signature.parameters.values())


def test_each_error_says_its_exit_status() -> None:
    assert {getattr(pyerofs, name).status for name in tree(errors.PyerofsError)} == {1, 2, 4, 32}


def test_an_editor_sees_what_is_imported_later() -> None:
    """The imports for type checkers are those that __getattr__() makes."""
    assert pyerofs.__file__
    seen = {}
    for node in ast.walk(ast.parse(Path(pyerofs.__file__).read_text())):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for each in node.body:
                if isinstance(each, ast.ImportFrom) and each.level:
                    seen.update({alias.asname or alias.name: (each.module, alias.name) for alias in each.names})
    assert seen == pyerofs._HOMES


def test_importing_the_package_loads_no_folder_of_it() -> None:
    code = "import json, sys, pyerofs; print(json.dumps([name for name in sys.modules if name.startswith('pyerofs')]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert set(json.loads(done.stdout)) == {"pyerofs", "pyerofs.errors", "pyerofs.safepath"}


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'pyerofs' has no attribute 'umount'"):
        _ = pyerofs.umount  # which is the point
