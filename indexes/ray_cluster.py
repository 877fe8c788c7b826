"""The connection to a Ray cluster (extra `ray`)."""

import logging
from typing import Any

from indexes.errors import InputError


def connected_ray(address: str | None) -> Any:
    """The module `ray`, connected.

    Args:
        address: Of a running cluster, such as `auto` or `ray://host:10001`; None: the one this process is connected to,
            else a new one on this machine.

    Raises:
        InputError: Ray is not installed, or there is no such cluster.
    """
    try:
        import ray
    except ModuleNotFoundError:
        raise InputError("Ray is not installed; pip install 'retrokit[ray]'") from None
    if not ray.is_initialized():
        try:
            ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"no Ray cluster at {address!r} ({reason}); start one or leave it out") from None
    return ray
