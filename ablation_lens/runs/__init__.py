"""Run folders: long work keeps every piece as soon as it is done, so that it resumes, is shared and merges by copying.

- `folder`: named files under content keys, failures, and how a disk's answers are told. It knows nothing of scores:
  whoever keeps something here says what a record holds (a study: `study/cells.py`).
- `locks`: who works on which key, between processes and machines.
- `claims`: what tells machines of each other, as the system's locks may not: files with a heartbeat.
"""
