"""What a command printed with `--json`, which is what docs/reference/cli.md says."""

import json
import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "cli.md"

SCHEMAS = {
    name: set(re.findall(r"`(\w+)`", fields))
    for name, fields in re.findall(r"^\| `ablation-lens\.(\w+)/1` \|[^|]*\|([^|]*)\|$", PAGE.read_text("utf-8"), re.M)
}
"""Schema → the fields that the page lists."""


def answered(answer, name, code=0):
    """The fields of a JSON object that a command printed."""
    found, out, errors = answer
    assert found == code, errors
    values = json.loads(out)
    assert values.pop("schema") == f"ablation-lens.{name}/1"
    assert set(values) == SCHEMAS[name]
    return values
