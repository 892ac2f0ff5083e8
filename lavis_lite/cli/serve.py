"""`python -m lavis_lite serve`: chat completions over HTTP, as OpenAI's clients ask for them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from lavis_lite.cli.console import command_parser, port
from lavis_lite.cli.demo import LOOPBACK, add_models, loading
from lavis_lite.errors import ConfigError

TOKEN = "LAVIS_LITE_SERVE_TOKEN"
"""environment variable with the token"""


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    arguments = command_parser("serve", "Answer chat completions over HTTP, as OpenAI's clients ask for them.", [
        "--model blip2_t5_instruct", "--model output/chat --host 0.0.0.0 --token-file token.txt"])
    add_models(arguments, "blip2_t5_instruct")
    arguments.add_argument("--host", default=LOOPBACK[0],
                           help="address to listen on (default: this machine only); another one needs a token")
    arguments.add_argument("--port", type=port, default=8000, help="0: any free one")
    arguments.add_argument("--token-file", metavar="FILE",
                           help=f"its first line is the token that requests must bring (default: ${TOKEN})")
    arguments.add_argument("--batch-size", type=int, default=8, help="requests that are answered together")
    arguments.add_argument("--max-waiting", type=int, default=64, help="requests that may wait; others get status 429")
    arguments.add_argument("--max-new-tokens", type=int, default=512, help="most tokens of an answer")
    arguments.add_argument("--max-pictures", type=int, default=8, help="most pictures of a request")
    arguments.add_argument("--max-body", type=int, default=20, metavar="MB", help="largest request")
    arguments.add_argument("--timeout", type=float, default=120.0, help="seconds that a request may take")
    return arguments


def main(argv: Sequence[str]) -> int:
    """Serve until the program is stopped.

    Raises:
        LavisLiteError: a package is not installed, a model cannot hold conversations, impossible settings.
    """
    chosen = parser().parse_args(list(argv))
    for name in ("batch_size", "max_waiting", "max_new_tokens", "max_pictures", "max_body", "timeout"):
        if not getattr(chosen, name) > 0:  # nor nan
            raise ConfigError(f"--{name.replace('_', '-')}: must be above 0, not {getattr(chosen, name)}.")
    token = token_of(chosen)
    from lavis_lite.apps import serve
    from lavis_lite.apps.chat_api import Limits
    from lavis_lite.apps.models import Models
    from lavis_lite.models.protocols import ChatModel

    models = Models(chosen.model or ["blip2_t5_instruct"], loading(chosen))
    for name in set(models.names) - set(models.able(ChatModel)):
        raise ConfigError(f"{name}: this model holds no conversations; try vision_language or blip2_t5_instruct.")
    serve.fastapi_package()
    address = serve.bound(chosen.host, chosen.port)
    limits = Limits(chosen.max_new_tokens, chosen.max_pictures, body=chosen.max_body * 2**20)
    service = serve.Service(models, limits, token, chosen.batch_size, chosen.max_waiting, chosen.timeout)
    app = serve.app_of(service)
    host = f"[{chosen.host}]" if ":" in chosen.host else chosen.host
    print(f"serving {', '.join(models.names)} at http://{host}:{address.getsockname()[1]}/v1\nCtrl+C stops it.",
          file=sys.stderr, flush=True)
    serve.run(app, address, service.close)
    return 0


def token_of(chosen: argparse.Namespace) -> str:
    """The token that requests must bring; "" on this machine only if none is given.

    Raises:
        ConfigError: other machines could ask without one, or the file cannot be read.
    """
    token = os.environ.get(TOKEN, "")
    if chosen.token_file is not None:
        try:
            lines = Path(chosen.token_file).expanduser().read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--token-file: {chosen.token_file} cannot be read: {error}") from error
        token = lines[0].strip() if lines else ""
        if not token:
            raise ConfigError(f"--token-file: {chosen.token_file} is empty; its first line is the token.")
    if not token and chosen.host not in LOOPBACK:
        raise ConfigError(f"--host {chosen.host}: other machines can ask, so requests must bring a token; name a file "
                          f"with one by --token-file, or set {TOKEN}.")
    return token
