"""Programs around the packages; run from the root of the repository."""
