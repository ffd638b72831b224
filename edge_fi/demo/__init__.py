"""The demo: a federation of five devices that reads handwritten digits, with models trained beforehand."""
