"""`python -m lavis_lite demo`: a page in the browser to try models on pictures."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lavis_lite.cli.console import command_parser, port
from lavis_lite.cli.generate import QUIET, add_placement
from lavis_lite.errors import ConfigError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    arguments = command_parser("demo", "Open a page to try models on pictures: caption, ask, converse, match, search, "
                               "compare.", ["", "--model blip2_opt output/blip2/stage2_opt --folder photos"])
    add_models(arguments, "the packaged mini models")
    arguments.add_argument("--folder", default="", help="pictures to search")
    arguments.add_argument("--host", default=LOOPBACK[0],
                           help="address to listen on (default: this machine only). On another address the page "
                                "offers the models of --model and the pictures of --folder, and no others")
    arguments.add_argument("--port", type=port, default=7860, help="0: any free one")
    arguments.add_argument("--max-upload", type=int, default=10, metavar="MB", help="largest file that is accepted")
    return arguments


def add_models(arguments: argparse.ArgumentParser, default: str) -> None:
    """Add the arguments that name models and say how they are loaded."""
    arguments.add_argument("--model", nargs="+", metavar="NAME",
                           help=f"ARCH, ARCH/TYPE or the folder of a run, each with @CHECKPOINT if needed "
                                f"(default: {default})")
    add_placement(arguments)
    arguments.add_argument("--allow-untrained", action="store_true", help="as `generate` takes it")


def loading(chosen: argparse.Namespace) -> dict[str, Any]:
    """How models are loaded, as `load_model_and_preprocess` takes it."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    return {"device": chosen.device, "dtype": chosen.dtype, "quantization": chosen.quantization,
            "allow_untrained": chosen.allow_untrained}


def main(argv: Sequence[str]) -> int:
    """Serve the page until the program is stopped.

    Raises:
        LavisLiteError: gradio is not installed, or there is no such model.
    """
    chosen = parser().parse_args(list(argv))
    if chosen.max_upload < 1:
        raise ConfigError(f"--max-upload: must be at least 1 MB, not {chosen.max_upload}.")
    if chosen.folder and not Path(chosen.folder).expanduser().is_dir():
        raise ConfigError(f"--folder: there is no folder {chosen.folder}.")
    from lavis_lite.apps import demo
    from lavis_lite.apps.models import Models
    from lavis_lite.apps.serve import bound

    gradio = demo.gradio()
    with bound(chosen.host, chosen.port) as address:  # found to be free before a model is loaded
        port_number = address.getsockname()[1]
    local = chosen.host in LOOPBACK
    models = Models(chosen.model or demo.MINI, loading(chosen), any_name=local)
    handlers = demo.Page(models, any_folder=local, folder=chosen.folder)
    page = demo.built(handlers)
    handlers.warm_up()
    try:
        _, address, _ = page.launch(
            server_name=chosen.host, server_port=port_number, quiet=True, share=False,
            max_file_size=chosen.max_upload * 2**20, prevent_thread_lock=True, footer_links=[],
            theme=gradio.themes.Base(font=demo.FONTS, font_mono=["monospace"]))
    except OSError as error:
        raise ConfigError(f"--port: {chosen.host}:{port_number} is in use or not of this machine; choose another one "
                          f"({error}).") from error
    print(f"the page: {address}\nCtrl+C stops it.", file=sys.stderr, flush=True)
    page.block_thread()
    return 0
