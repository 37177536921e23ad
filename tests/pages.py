"""Reads the explorer's page."""

import json
import re


def payload_of(made):
    """What the page's scripts are given."""
    return json.loads(re.search(r'id="payload">(.*?)</script>', made.html, flags=re.DOTALL)[1])
