"""Door to the doctor: asks each room for its facts and prints them. Knows no facts itself."""

import sys
from typing import Annotated

import typer

from batchdet.cli.options import AsJson, Settings, storage_config
from batchdet.cli.output import print_json, print_table
from batchdet.records import Fact


def doctor(
    source: Annotated[str | None, typer.Option(metavar="URI", help="Also try to list these images.")] = None,
    output: Annotated[str | None, typer.Option(metavar="URI", help="Also try to write there.")] = None,
    ray: Annotated[str, typer.Option(metavar="auto|local|off|ADDRESS", help="The cluster to look at.")] = "auto",
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Say what works on this machine and cluster. Exits 1 if something that labelling needs does not."""
    from batchdet.cluster.facts import cluster_facts
    from batchdet.engine.facts import engine_facts
    from batchdet.storage.facts import output_fact, source_fact, storage_facts

    storage = storage_config(settings)
    facts = [*engine_facts(), *storage_facts()]
    if source is not None:
        facts.append(source_fact(source, storage.source))
    if output is not None:
        facts.append(output_fact(output, storage.output))
    facts += cluster_facts(ray)
    _show(facts, as_json)
    if any(fact.state == "fail" for fact in facts):
        raise typer.Exit(1)


def _show(facts: list[Fact], as_json: bool) -> None:
    if as_json:
        print_json(facts)
        return
    print_table(("state", "what", "finding"), [(fact.state, fact.name, fact.finding) for fact in facts])
    if any(fact.state == "fail" for fact in facts):
        sys.stderr.write("something labelling needs does not work\n")
