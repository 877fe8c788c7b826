"""Seeds that depend on an address, and on nothing that was drawn before."""

import hashlib

import torch


def seeded(device: torch.device, *address: int | str) -> torch.Generator:
    """A generator on `device` for one address (seed, step, micro-step, rank).

    It depends on the address only, so that a resumed run draws what the uninterrupted run would have drawn.
    """
    return torch.Generator(device).manual_seed(seed_of(*address))


def seed_of(*address: int | str) -> int:
    """63 bits that depend on every part of an address and on their order."""
    digest = hashlib.sha256("/".join(map(str, address)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
