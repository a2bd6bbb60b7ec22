"""A service over one pipeline: requests of different users share batches, each with its own budget. See docs/serve.md."""
