"""A seeded campaign against the tool: it builds its own victims, hurts them, and counts what survives.

An attempt survives if the tool does what it promises (docs/security.md): a right result, or one sentence that names
what is wrong; in time, within its memory, with nothing lost and nothing run. Every class of fault is a test here, small
in the suite and ten times as large under `-m slow`; the summary of pytest prints attempts, survived and failed.

- `tally`: counts attempts. `victims`: the files that are hurt, and what reading them gives.
- `damage`: changed bytes. `forgery`: changed values under a right checksum. `processes`: commands that are
  interrupted, or print to a terminal. `study_driver`: studies that are killed, stopped, or share a folder.
"""
