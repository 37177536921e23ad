"""How Sphinx builds the site: `make docs`, or `python -m sphinx docs build/docs`.

The pages are plain Markdown that also reads well where no site is built; `_ext/` holds what makes a site of them.
"""

import sys
from pathlib import Path

import ablation_lens

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

project = "ablation-lens"
author = "the ablation-lens authors"
project_copyright = "the ablation-lens authors, MIT licence"
version = release = ablation_lens.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary"]
extensions += ["sphinx_design", "sphinx_copybutton", "api", "elsewhere", "offline_figures"]
exclude_patterns = ["_ext", "_static"]

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
suppress_warnings = ["mystnb.unknown_mime_type"]  # ipywidgets' view of a progress line, which has a text, too

nb_execution_mode = "cache"
nb_execution_cache_path = str(HERE.parent / "build" / "notebooks")
nb_execution_in_temp = True
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_merge_streams = True
nb_output_stderr = "remove"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autosummary_generate = False
python_maximum_signature_line_length = 88
python_display_short_literal_types = True
add_module_names = True

smartquotes_action = "D"  # dashes; a quoted name stays as it is typed

html_theme = "furo"
html_title = f"ablation-lens {release}"
html_static_path = ["_static"]
html_favicon = "_static/favicon.svg"
html_css_files = ["site.css"]
html_js_files = ["offline.js"]
html_copy_source = False
html_show_sourcelink = False
pygments_style, pygments_dark_style = "tango", "monokai"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
