"""Door to the models one can label with. Knows no weights."""

from typing import Annotated

import typer

from batchdet.cli.options import AsJson, Settings, storage_config
from batchdet.cli.output import print_json, print_table

app = typer.Typer(name="models", help="The models one can label with.")

Registry = Annotated[
    str | None, typer.Argument(metavar="[REGISTRY]", help="A registry folder; without it, torchvision's references.")
]


@app.command("list")
def list_models(registry: Registry = None, settings: Settings = None, as_json: AsJson = False) -> None:
    """The references torchvision publishes, or the models of a registry, their versions and which is promoted."""
    if registry is None:
        _list_references(as_json)
    else:
        _list_registry(registry, settings, as_json)


def _list_references(as_json: bool) -> None:
    from batchdet.engine.references import list_references

    found = list_references()
    if as_json:
        print_json(found)
        return
    rows = [
        (
            model.reference,
            model.box_map,
            f"{model.num_parameters / 1e6:.1f} M",
            f"{model.megabytes:.0f} MB",
            model.num_categories,
        )
        for model in found
    ]
    print_table(("reference", "COCO mAP", "parameters", "download", "categories"), rows)


def _list_registry(registry: str, settings: list[str] | None, as_json: bool) -> None:
    from batchdet.storage.versions import list_versions

    found = list_versions(registry, storage_config(settings).source)
    if as_json:
        print_json(found)
        return
    rows = [
        (
            model.name,
            model.version,
            "promoted" if model.is_promoted else "",
            model.architecture,
            model.metrics.get("map"),
            len(model.categories) - 1,
            model.reference,
        )
        for model in found
    ]
    print_table(("name", "version", "live", "architecture", "mAP", "categories", "reference"), rows)
