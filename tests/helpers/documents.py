"""Examples of the documents, as they stand there."""

import re
import textwrap

from checkout import ROOT


def python_of(document: str, section: str) -> list[str]:
    """The blocks of Python below a heading of the second level, in their order."""
    text = (ROOT / "docs" / document).read_text().split(f"\n## {section}\n")[1].split("\n## ")[0]
    return [
        textwrap.dedent(block) for block in re.findall(r"^ *```python\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    ]
