"""The runtime stays silent: no file, no socket, no thread of a collector."""

import os
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest

SENDS_SINCE = (1, 29)
VERSION = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])

WATCH = """
import os, sys, time
{imports}
sockets = set()
end = time.monotonic() + 2.0
while time.monotonic() < end:
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink("/proc/self/fd/" + descriptor)
        except OSError:
            continue
        if target.startswith("socket:"):
            sockets.add(target)
    time.sleep(0.002)
print(len(sockets), len(os.listdir("/proc/self/task")))
"""

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads /proc")


def watch(imports: str, home: Path) -> tuple[int, int, list[Path]]:
    """Sockets, threads and files of a fresh process with an empty home and no sign of a CI."""
    environment = {"HOME": str(home), "PATH": os.environ["PATH"]}
    script = WATCH.format(imports=imports)
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    sockets, threads = map(int, done.stdout.split())
    return sockets, threads, [path for path in home.rglob("*") if path.is_file()]


def test_our_import_leaves_no_file_and_opens_no_socket(tmp_path: Path) -> None:
    run = """
from edge_fi.demo.members import heldout
from edge_fi.adapters.onnx import OnnxModel
from edge_fi.demo.members import ASSETS, members, task
member = members()[1]
model = OnnxModel.load(ASSETS / member.model, task(), labels=member.labels, scores="probabilities")
assert model.infer(heldout()[0][:2])[0] is not None
"""
    sockets, threads, files = watch(run, tmp_path)
    assert (sockets, files) == (0, [])
    assert threads <= 2  # the interpreter's, and one of numpy's; the collector would be a third


@pytest.mark.skipif(VERSION < SENDS_SINCE, reason="onnxruntime sends nothing before 1.29")
def test_a_plain_import_would_be_noticed(tmp_path: Path) -> None:
    """Without this, the test above could pass because it looks in the wrong place."""
    _, _, files = watch("import onnxruntime", tmp_path)
    assert files
