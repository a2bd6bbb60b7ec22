"""What is compared: the plain pipeline, BlockDance, other people's caches, and the policy."""
