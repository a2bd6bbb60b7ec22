"""What the libraries say in a training run that no reader of its output can use; each line by its beginning, nothing more."""

import logging
import re
import warnings

LIGHTNING_CHATTER = re.compile(
    r"💡 Tip: For seamless cloud"  # advertising
    r"|Seed set to |GPU available: False|TPU available: "
    r"|Loading `train_dataloader` to estimate"
    r"|`Trainer\.fit` stopped: `max_epochs=\d+` reached"
    r"|Restor(ing|ed all) states from the checkpoint"  # the run says it itself, with the epoch
)
LIBRARIES_WARNINGS = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning's use of torch
    # Lightning's use of jsonargparse
    r"(?s)\s*By default only one JsonargparseDeprecationWarning",
    r"(?s).*(instantiate_classes|add_instantiator|skip_none).* deprecated in v4",
    r"Checkpoint directory .* exists and is not empty",  # it is the run's own, which goes on
    r"The '(train|val)_dataloader' does not have many workers",  # prompts and tensors need none
)


def quieten_libraries() -> None:
    """Drops advertising, and warnings about what libraries do among themselves."""
    for name in ("pytorch.utilities.rank_zero", "fabric.utilities.rank_zero", "fabric.utilities.seed"):
        logger = logging.getLogger(f"lightning.{name}")
        if _is_news not in logger.filters:
            logger.addFilter(_is_news)
    for beginning in LIBRARIES_WARNINGS:
        warnings.filterwarnings("ignore", message=beginning)


def _is_news(record: logging.LogRecord) -> bool:
    return LIGHTNING_CHATTER.match(record.getMessage()) is None
