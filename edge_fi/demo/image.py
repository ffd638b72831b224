"""`python -m edge_fi.demo.image N` prints held-out image N as JSON, to ask a federation about."""

import json
import sys

import numpy as np

from edge_fi.demo.members import heldout


def main() -> None:
    """Print the image on stdout, and what it shows on stderr."""
    tensors, truth = heldout()
    number = int(sys.argv[1])
    tensor = tensors[number]
    image = np.frombuffer(tensor.content, tensor.dtype).reshape(tensor.shape)
    sys.stdout.write(json.dumps(image.tolist()) + "\n")
    sys.stderr.write(f"image {number} shows a {truth[number]}\n")


if __name__ == "__main__":
    main()
