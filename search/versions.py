"""Versions of installed packages, without importing them."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def installed(package: str) -> str:
    """The version of a distribution, or "not installed" (a checkout that runs without being
    installed)."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
