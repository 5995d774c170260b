"""`jem-hf demo`."""

import os
import sys
from contextlib import redirect_stdout
from typing import Annotated

import typer

from ..hub.zoo import DEFAULT_MODEL
from .shared import Json, Model, app, print_json


@app.command()
def demo(
    model: Model = DEFAULT_MODEL,
    host: Annotated[str, typer.Option(help="Address to serve at; 0.0.0.0 lets others in.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="Port; the first free one from 7860 on.")] = None,
    browser: Annotated[bool, typer.Option(help="Open a browser.")] = True,
    as_json: Json = False,
):
    """Open a page to make, tag, edit and compare images."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    from ..demo.page import create_page, launch  # gradio takes seconds to import, and may not be there

    with redirect_stdout(sys.stderr):
        page = create_page(model)
        where = dict(server_name=host, server_port=port, inbrowser=browser)
        url = launch(page, **where, quiet=True, prevent_thread_lock=True)[1]
    print_json({"url": url}) if as_json else typer.echo(f"{url}  (Ctrl+C ends it)")
    page.block_thread()
