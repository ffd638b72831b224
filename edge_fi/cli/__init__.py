"""The command line `edge-fi`. The only part of edge_fi that talks to a person."""
