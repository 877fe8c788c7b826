"""The documentation of the installed Python packages as a corpus with one known-item query for each document."""

import ast
import hashlib
import re
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from indexes.errors import InputError
from retrieval.documents import Document

QUERY_WORDS = (4, 30)
"""The first paragraph of a docstring is a query if it has this many words (both ends included)."""
TEXT_WORDS = 20
"""The rest of the docstring is a document if it has at least this many words."""

_SKIPPED = {"test", "tests", "testing", "_vendor", "vendor"}


class KnownItem(NamedTuple):
    """A document and the query that it, and it alone, answers."""

    document: Document
    query: str


def read_python_docs(spec: str = "python-docs") -> Iterator[KnownItem]:
    """Read the docstrings of installed packages from their source with `ast`; nothing is imported.

    Each module, class and function whose docstring has a first paragraph of 4–30 words and at least 20 further words
    gives one document (id: the qualified name; text: the rest of the docstring) and one query (the first paragraph).
    Items whose id, query or text occurred before are dropped: their query would have two answers.

    Args:
        spec: `python-docs` for every installed distribution, or `python-docs:numpy,scipy` for some.

    Yields:
        Known items by distribution name, then path, then place in the file.

    Raises:
        InputError: A named distribution is not installed.
    """
    seen: set[bytes] = set()
    for path, module in _sources(spec):
        for name, docstring in _docstrings(path, module):
            item = known_item(name, docstring)
            if item is None:
                continue
            keys = {_key("id", name), _key("query", item.query.casefold()), _key("text", item.document.text)}
            if seen.isdisjoint(keys):
                yield item
            seen |= keys


def known_item(name: str, docstring: str) -> KnownItem | None:
    """Split a docstring into query and document; None if either is too short or too long."""
    first, *rest = re.split(r"\n\s*\n", docstring.strip(), maxsplit=1)
    query = " ".join(first.split())
    text = rest[0].strip() if rest else ""
    if not QUERY_WORDS[0] <= len(query.split()) <= QUERY_WORDS[1] or len(text.split()) < TEXT_WORDS:
        return None
    return KnownItem(Document(id=name, text=text), query)


def check_packages(spec: str) -> dict[str, metadata.Distribution]:
    """The wanted distributions by name, in the order in which they are read.

    Raises:
        InputError: One is not installed.
    """
    wanted = [name.strip().lower() for name in spec.partition(":")[2].split(",") if name.strip()]
    installed = {str(found.metadata["Name"]).lower(): found for found in metadata.distributions() if found.metadata}
    missing = [name for name in wanted if name not in installed]
    if missing:
        raise InputError(f"{spec}: {', '.join(missing)} is not installed; expected names that `pip list` shows")
    return {name: installed[name] for name in wanted or sorted(installed)}


def _sources(spec: str) -> Iterator[tuple[Path, str]]:
    """Yield (path, module name) of every source file of the wanted distributions."""
    installed = check_packages(spec)
    for name in installed:
        for file in sorted(installed[name].files or []):
            parts = file.with_suffix("").parts
            if file.suffix != ".py" or ".." in parts or _SKIPPED & set(parts):
                continue
            yield Path(str(file.locate())), ".".join(part for part in parts if part != "__init__")


def _docstrings(path: Path, module: str) -> Iterator[tuple[str, str]]:
    """Yield (qualified name, docstring) of a module and of its classes and functions, methods included."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's sources
            tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return  # a template, a file for another Python version, or one that was removed
    todo: list[tuple[str, ast.AST]] = [(module, tree)]
    while todo:
        name, node = todo.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if docstring := ast.get_docstring(node):
                yield name, docstring
            inner = [child for child in node.body if hasattr(child, "name")]
            todo.extend((f"{name}.{child.name}", child) for child in reversed(inner))


def _key(kind: str, value: str) -> bytes:
    return hashlib.blake2b(f"{kind}\0{value}".encode("utf-8", "replace"), digest_size=16).digest()
