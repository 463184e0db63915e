"""`taxi figures`: the figures in the documents, from what was recorded."""

import rich_click as click

from loadtest import figures


@click.command("figures")
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 if something is stale.")
def command(check: bool) -> int:
    """Write tables and plots in README.md and docs/ from the results in docs/results.

    Says which files were stale. Nothing is measured.
    """
    changed = figures.stale() if check else figures.write()
    for path in changed:
        click.echo(f"{'stale' if check else 'written'}: {path.relative_to(figures.ROOT)}")
    return int(check and bool(changed))
