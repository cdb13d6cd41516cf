"""Door to the models one can label with and to their registry. Knows no weights and no measures.

torch and Ray are imported inside the commands that measure.
"""

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from batchdet.cli.evaluate import LabelsUri, as_document, labels_folder, measuring_job
from batchdet.cli.options import AsJson, RayAddress, Settings, read_settings, storage_config
from batchdet.cli.output import print_json, print_table
from batchdet.cli.released import require_promoted, show_release
from batchdet.cli.runner import build_runner
from batchdet.config import JobConfig, load_job
from batchdet.errors import ConfigError
from batchdet.progress import open_progress
from batchdet.training.gate import Tolerances

if TYPE_CHECKING:
    from batchdet.release import Release

app = typer.Typer(name="models", help="The models one can label with, and their registry.")

Registry = Annotated[
    str | None, typer.Argument(metavar="[REGISTRY]", help="A registry folder; without it, torchvision's references.")
]


ModelFolder = Annotated[str, typer.Argument(metavar="REGISTRY/NAME", help="A model of a registry.")]
Version = Annotated[
    str, typer.Argument(metavar="REGISTRY/NAME[@VERSION]", help="A model of a registry, and which version.")
]
DEFAULTS = Tolerances()


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


@app.command("show")
def show_model(model: Version, settings: Settings = None, as_json: AsJson = False) -> None:
    """One version of a model, the live one unless it is named: its card, and what was promoted when and why."""
    from batchdet.storage.promotion import read_promotions
    from batchdet.storage.registry import open_model
    from batchdet.storage.versions import read_card

    folder, wanted = open_model(model, storage_config(settings).source)
    promotions = read_promotions(folder)
    version = wanted or promotions.version
    if version is None:
        raise ConfigError(f"{model}: no version is live; name one as {model}@VERSION")
    found = {
        "reference": f"{folder.uri}@{version}",
        "is_promoted": version == promotions.version,
        "card": read_card(folder, version),
        "live": promotions.version,
        "history": promotions.history,
        "refused": promotions.refused,
    }
    if as_json:
        print_json(found)
        return
    card: dict[str, object] = found.pop("card")  # type: ignore[assignment]
    rows = [*found.items(), *card.items()]
    print_table(
        ("field", version), [(name, value if isinstance(value, str) else json.dumps(value)) for name, value in rows]
    )


@app.command("import")
def import_model(
    registry: Version,
    model: Annotated[str, typer.Option(metavar="REF", help="A .safetensors or .pth file, torchvision:NAME, a model.")],
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Put a model into a registry as a new version, the next number unless it is named; versions never change.

    For a bare file: --set model.architecture=NAME --set 'model.categories=[__background__, …]'.
    """
    job = _registry_job(model, settings)
    from batchdet.release import import_version

    reference = import_version(job.model, registry, job.storage.source)
    if as_json:
        print_json({"reference": reference})
    else:
        print_table(("imported", "reference"), [(model, reference)])


@app.command("promote")
def promote_model(
    model: Version,
    gold: Annotated[str | None, typer.Option(metavar="COCO.json", help="Held-out human labels to measure on.")] = None,
    images: Annotated[str | None, typer.Option(metavar="URI", help="Where the gold images are.")] = None,
    tolerance: Annotated[
        float, typer.Option("--tolerance", metavar="FRACTION", min=0, max=1, help="How far mAP may fall.")
    ] = DEFAULTS.overall,
    category_tolerance: Annotated[
        float, typer.Option(metavar="FRACTION", min=0, max=1, help="How far a category's average precision may fall.")
    ] = DEFAULTS.category,
    min_objects: Annotated[
        int, typer.Option(metavar="COUNT", min=1, help="Gold objects a category needs to be judged by itself.")
    ] = DEFAULTS.min_objects,
    no_gate: Annotated[bool, typer.Option("--no-gate", help="Promote unmeasured.")] = False,
    output: LabelsUri = None,
    settings: Settings = None,
    ray: RayAddress = "auto",
    as_json: AsJson = False,
) -> None:
    """Make a version live if it measures no worse on gold labels than the one that is. Exits 3, and says why, if not.

    The first version to go live needs no gold.
    """
    from batchdet.release import promote_measured, promote_unmeasured

    if (gold is None) != (images is None) or (no_gate and gold is not None):
        raise ConfigError("promote: give --gold and --images together, and neither with --no-gate")
    if gold is None or images is None:
        release = promote_unmeasured(model, storage_config(settings).source, no_gate=no_gate)
    else:
        tolerances = Tolerances(tolerance, category_tolerance, min_objects)
        with labels_folder(output) as folder, open_progress(sys.stderr) as progress:
            job = measuring_job(model, images, folder, settings)
            release = promote_measured(job, gold, tolerances, build_runner(ray, job.cluster), progress)
    _show_release(release, as_json)
    require_promoted(release)


@app.command("rollback")
def roll_back_model(model: ModelFolder, settings: Settings = None, as_json: AsJson = False) -> None:
    """Make the version live again that was before the live one was promoted."""
    from batchdet.release import take_back

    _show_release(take_back(model, storage_config(settings).source), as_json)


def _registry_job(model: str, settings: list[str] | None) -> JobConfig:
    """A job that labels nothing: only its model and its storage matter."""
    values = read_settings(settings)
    for field in values:
        if not field.startswith(("model.", "storage.source")):
            raise ConfigError(f"--set {field}: only model.* and storage.source.* matter here")
    return load_job(None, {"source": "-", "output": "-", "model.reference": model, **values})


def _show_release(release: "Release", as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "reference": release.reference,
                "promoted": release.promoted,
                "instead_of": release.instead_of,
                "reasons": release.reasons,
                "candidate": None if release.candidate is None else as_document(release.candidate),
                "live": None if release.live is None else as_document(release.live),
            }
        )
        return
    show_release(release, (("mAP", release.candidate), ("mAP of the live version", release.live)))
