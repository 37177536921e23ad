"""Finished work as one page that a person reads.

- `study`: a run folder as a page.
- `page`: headings, paragraphs, tables and figures, written as HTML and Markdown.
"""
