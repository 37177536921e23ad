"""Finished work as one page that a person reads.

- `study`: a run folder as a page.
- `circuit`: a folder of circuits as a page.
- `experiment`: the experiments by name, and what one leaves in a folder.
- `experiment_page`: what `forget`, `modularity` or `transfer` left, as a page; each has a module of its own.
- `again`: the settings and the commands that do either again.
- `page`: headings, paragraphs, tables and figures, written as HTML and Markdown.
"""
