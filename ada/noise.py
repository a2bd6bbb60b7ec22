"""Seeds of noise: validation shares none with training, nor what is evaluated on class labels, which training knows too."""

NUM_SEEDS = 2**32
"""PyTorch's generator on the CPU, which draws all noise, reads 32 bits of a seed: those that differ above give the same noise."""
VALIDATION = 2**30
EVALUATION_OF_LABELS = 2**31
SEARCH_AMONG_LABELS = 2**31 + 2**30


def noise_seed(seed: int, index: int, use: int = 0) -> int:
    """Seed of a prompt's noise, whatever its batch, process or device.

    Args:
        seed: of the run.
        index: the prompt's place in its data set.
        use: 0 for training, or one of this module's constants.
    """
    return (seed * 1_000_003 + index + use) % NUM_SEEDS
