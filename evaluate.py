"""Compares a trained policy with every alternative: `python evaluate.py --policy checkpoints/ada-emoji`."""

import re
import sys

from jsonargparse import auto_cli, set_parsing_settings

from ada.evaluation import EvaluationOptions, run_options
from blockdance import BlockDanceError


def main() -> None:
    """Reads the options, evaluates, and tells what is wrong in one line."""
    # --batch-size is understood as well as --batch_size
    words = [re.sub("^--[^=]+", lambda option: "--" + option[0][2:].replace("-", "_"), word) for word in sys.argv[1:]]
    set_parsing_settings(docstring_parse_attribute_docstrings=True)  # so that --help says what an option means
    usage = "evaluate.py --policy FOLDER_OR_HUB_ID [--OPTION VALUE …]"  # it stands above every error, so it names no more
    options = auto_cli(EvaluationOptions, args=words, as_positional=False, allow_abbrev=False, usage=usage)
    try:
        run_options(options)
    except (OSError, ValueError, BlockDanceError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
