"""`python -m edge_fi` is `edge-fi`."""

from edge_fi.cli.main import main

main()
