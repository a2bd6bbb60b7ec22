"""Seeds of noise: what is learnt, validated, chosen and measured shares none, also where it shares its prompts, as class labels must."""

VALIDATION = 2**40
EVALUATION = 2**41
SEARCH_OF_EVALUATION = 2**42


def noise_seed(seed: int, index: int, use: int = 0) -> int:
    """Seed of a prompt's noise, whatever its batch, process or device.

    Args:
        seed: of the run.
        index: the prompt's place in its data set.
        use: 0 for training, or one of this module's constants.
    """
    return (seed * 1_000_003 + index + use) % 2**63
