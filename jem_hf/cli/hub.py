"""`jem-hf models`, `push`, `export` and `demo`."""

import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from ..hub.export import export
from ..hub.space import push_space
from ..hub.zoo import DEFAULT_MODEL, list_models, model_info
from .shared import Json, Model, app, check_folder, load_model, path, print_json, say


@app.command()
def models(
    name: Annotated[str | None, typer.Argument(help="One model, whole.")] = None,
    filter: Annotated[str | None, typer.Option(help="A pattern, tag, attribute, dataset or recipe.")] = None,
    as_json: Json = False,
) -> None:
    """The zoo, from its cards."""
    infos = [model_info(each) for each in ([name] if name else list_models(filter))]
    if as_json:
        entries = [{"name": info.name, "trained": info.is_trained, **info.card} for info in infos]
        print_json(entries[0] if name else entries)
    elif name:
        typer.echo((infos[0].folder / "README.md").read_text())
    else:
        for info in infos:
            size = f"{info.card['image_size']}x{info.card['image_size']}"
            attributes = f"{len(info.card['attributes']):3} attributes" if info.card.get("attributes") else ""
            trained = "trained" if info.is_trained else "recipe only"
            typer.echo(f"{info.name:20} {size:8} {attributes:14}  {trained}")


@app.command()
def push(
    model: Model,
    repo_id: Annotated[str, typer.Argument(help="Where on the Hub: user/name, or a name in your own namespace.")],
    private: Annotated[bool | None, typer.Option("--private", help="Make a private repo.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, made where there is none.")] = None,
    message: Annotated[str | None, typer.Option(help="What the history says.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Propose the change, write nothing.")] = False,
    space: Annotated[bool, typer.Option("--space", help="Upload the page of `jem-hf demo` as a Space.")] = False,
    as_json: Json = False,
) -> None:
    """Upload a model to the Hub: weights, image processor, code that loads it anywhere, and its card."""
    settings = dict(private=private, revision=revision, commit_message=message, create_pr=create_pr)
    with redirect_stdout(sys.stderr):
        network = load_model(model)
        commit = push_space(network, repo_id, **settings) if space else network.push_to_hub(repo_id, **settings)
    url = commit.pr_url or commit
    print_json({"repo_id": commit.repo_url.repo_id, "commit": commit.oid, "url": url}) if as_json else typer.echo(url)


@app.command("export")
def export_model(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", parser=path, help="File: .onnx, or .pt2.")] = "model.onnx",
    as_json: Json = False,
) -> None:
    """Write what tags images as one file for other programs: ONNX, or a program of torch.export."""
    check_folder(output.parent)
    with redirect_stdout(sys.stderr):
        export(load_model(model), output)
    size = round(output.stat().st_size / 1e6, 1)
    print_json({"output": str(output), "megabytes": size}) if as_json else say(f"wrote {output}, {size} MB")


@app.command()
def demo(
    model: Model = DEFAULT_MODEL,
    host: Annotated[str, typer.Option(help="Address to serve at; 0.0.0.0 lets others in.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="Port; the first free one from 7860 on.")] = None,
    browser: Annotated[bool, typer.Option(help="Open a browser.")] = True,
    as_json: Json = False,
) -> None:
    """Open a page to make, tag, edit and compare images."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    from ..demo.page import create_page, launch  # gradio takes seconds to import, and may not be there

    with redirect_stdout(sys.stderr):
        page = create_page(model)
        where = dict(server_name=host, server_port=port, inbrowser=browser)
        url = launch(page, **where, quiet=True, prevent_thread_lock=True)[1]
    print_json({"url": url}) if as_json else typer.echo(f"{url}  (Ctrl+C ends it)")
    page.block_thread()
