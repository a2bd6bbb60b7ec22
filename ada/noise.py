"""Seeds of noise: training, validation, evaluation and its calibrations share none; a ladder's search shares its own with runs of a million
captions, or of seed 1, alone."""

NUM_SEEDS = 2**32
"""PyTorch's generator on the CPU, which draws all noise, reads 32 bits of a seed: those that differ above give the same noise."""
LADDER_SEARCH = 10**6
VALIDATION = 2**30
EVALUATION = 2**31
SEARCH = 2**31 + 2**30


def noise_seed(seed: int, index: int, use: int = 0) -> int:
    """Seed of a prompt's noise, whatever its batch, process or device.

    Args:
        seed: of the run.
        index: the prompt's place in its data set.
        use: 0 for training, or one of this module's constants.
    """
    return (seed * 1_000_003 + index + use) % NUM_SEEDS
