"""`taxi strategies`: what there is to choose from."""

import json
from dataclasses import asdict

import rich_click as click
from rich.console import Console
from rich.table import Table

from booking.strategies import Act, strategies


@click.command("strategies")
@click.option("--act", type=click.Choice([each.value for each in Act]), help="Only this act's.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(act: str | None, as_json: bool) -> None:
    """List every strategy with its act, its idea and what it claims."""
    found = strategies(None if act is None else Act(act))
    if as_json:
        click.echo(json.dumps([asdict(each) for each in found], indent=2))
        return
    table = Table("act", box=None, header_style="bold")
    table.add_column("strategy", no_wrap=True)  # a name cut short cannot be given to --prevention
    table.add_column("claim")
    table.add_column("idea")
    for each in found:
        table.add_row(each.act, each.name, each.claim or "-", each.idea)
    Console().print(table)
