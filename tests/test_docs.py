"""The pages: no link into nowhere, no gap left to be filled, and files that must be alike are."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(path for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("tests/**/*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = [target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    local = [target for target in targets if target and not target.startswith("http")]
    assert [target for target in local if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_page_has_a_gap_to_be_filled(page: Path) -> None:
    assert not re.search(r"@@|TODO|FIXME|XXX", page.read_text(encoding="utf-8"))


def test_the_task_of_the_examples_is_the_demos() -> None:
    """A copy, since a link would lead nowhere once the folder is copied elsewhere."""
    example, demo = ROOT / "configs/tasks/digits.toml", ROOT / "edge_fi/demo/assets/digits.toml"
    assert not example.is_symlink()
    assert example.read_bytes() == demo.read_bytes()


@pytest.mark.parametrize("name", ["round_trip", "gateway", "flood"])
def test_each_benchmark_stands_on_the_page_with_its_command(name: str) -> None:
    assert (ROOT / "benchmarks" / f"{name}.py").exists()
    assert f"python benchmarks/{name}.py" in (ROOT / "docs/performance.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_test_that_a_page_names_is_there(page: Path) -> None:
    named = re.findall(r"(tests/[\w/]+\.py)(?: -k (\w+))?", page.read_text(encoding="utf-8"))
    for path, word in named:
        source = (ROOT / path).read_text(encoding="utf-8")
        assert re.search(rf"def test_\w*{word}", source) or not word, f"{path} -k {word} selects nothing"
