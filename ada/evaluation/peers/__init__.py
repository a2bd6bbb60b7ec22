"""What a user might pick instead: other people's caches, each run as its own documentation says."""

from ada.evaluation.peers.default import peer_methods

__all__ = ["peer_methods"]
