"""Who a network is: a hash of its weights."""

from __future__ import annotations

from medmdm.networks.weights_files import weights_hash

__all__ = ["weights_hash"]
