"""What examples/ says of itself."""

import re

from tests.support.documents import ROOT

FOLDER = ROOT / "examples"
TESTS = ("tests/e2e/test_examples.py", "tests/gateway/test_tool_examples.py")


def test_every_example_stands_in_the_table_and_is_run_by_a_test() -> None:
    files = {path.name for path in FOLDER.iterdir() if path.suffix in (".py", ".mjs", ".sh")}

    listed = re.findall(r"\| \[([\w.]+)\]\(\1\) \|", (FOLDER / "README.md").read_text("utf-8"))
    tests = "".join((ROOT / name).read_text("utf-8") for name in TESTS)

    assert len(files) > 10
    assert sorted(listed) == sorted(files)
    assert {name for name in files if f'"{name}"' in tests} == files
