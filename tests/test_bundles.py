import json
import re

import medmdm
from tests.bundle_runs import BUNDLES, REPOSITORY


def test_versions_agree() -> None:
    metadata = json.loads((BUNDLES / "metadata.json").read_text())
    citation = re.search(r"^version: (\S+)$", (REPOSITORY / "CITATION.cff").read_text(), re.MULTILINE)
    newest = re.search(r"^## (\S+) ", (REPOSITORY / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert citation
    assert newest
    assert {metadata["version"], next(iter(metadata["changelog"])), citation[1], newest[1]} == {medmdm.__version__}
