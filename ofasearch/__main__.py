"""`python -m ofasearch`, as torchrun calls it."""

from ofasearch.cli.main import main

main()
