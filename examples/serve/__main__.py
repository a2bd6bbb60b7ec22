"""`python -m examples.serve`: runs the service."""

import logging
import sys

import uvicorn
from jsonargparse import auto_cli

from examples.serve.app import Limits, create_app
from examples.serve.model import ModelSettings


def serve(model: ModelSettings, limits: Limits, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Serves images until SIGINT or SIGTERM; what was taken is answered first.

    Args:
        model: what it generates with.
        limits: what it takes on.
        host: address to listen on.
        port: port to listen on.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        app = create_app(model, limits)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
    # every request ends by its own timeout, so a shutdown that waits for all of them ends too
    uvicorn.run(app, host=host, port=port, access_log=False, timeout_graceful_shutdown=int(limits.timeout) + 5)


if __name__ == "__main__":
    auto_cli(serve, as_positional=False, allow_abbrev=False)
