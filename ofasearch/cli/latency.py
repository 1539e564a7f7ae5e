"""`ofasearch latency`."""

from __future__ import annotations

import click

from ofasearch.cli.explain import explain
from ofasearch.cli.latency_estimate import estimate, transfer
from ofasearch.cli.latency_files import diff_tables, export_table, import_table, list_tables, merge_tables, show_table
from ofasearch.cli.latency_kit import kit
from ofasearch.cli.latency_measure import build, check, validate


@click.group()
def latency() -> None:
    """Latency tables."""


files = (list_tables, show_table, import_table, export_table, merge_tables, diff_tables)
for command in (build, validate, check, kit, explain, estimate, transfer, *files):
    latency.add_command(command)
