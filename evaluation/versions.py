"""The versions of the packages that numbers depend on."""

from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("retrokit", "numpy", "torch", "sentence-transformers", "faiss-cpu", "faiss-gpu")


def versions(*more: str) -> dict[str, str]:
    """Package to version, of those that are installed."""
    found = {}
    for package in (*_PACKAGES, *more):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
