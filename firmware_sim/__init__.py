"""firmware_sim: drives the product's own machines under a virtual clock and lossy links."""
