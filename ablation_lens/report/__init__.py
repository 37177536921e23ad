"""Finished work as one page that a person reads.

- `study`: a run folder as a page.
- `again`: the settings and the command that do a study again.
- `page`: headings, paragraphs, tables and figures, written as HTML and Markdown.
"""
