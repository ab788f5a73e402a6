"""How the site is built: Sphinx reads the pages that pages.py wrote, MyST-NB the notebooks among them.

Furo is the theme: its search box is on every page, it works at a phone's width, and it loads nothing from elsewhere
(pydata-sphinx-theme has both too, but keeps its search behind a button and carries an icon font). Equations become
MathML when the site is built, which every current browser shows without a script or a font of ours.
"""

from typing import Any

from docutils import nodes
from latex2mathml.converter import convert

project = "dynamic-at"
copyright = "the authors of dynamic-at, under the MIT licence"
extensions = ["myst_nb", "sphinx_design"]
exclude_patterns = ["files", "tables"]
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
nb_execution_mode = "off"  # a page shows what was run, and runs nothing
nb_merge_streams = True
nb_code_prompt_show, nb_code_prompt_hide = "Show the code", "Hide the code"
nb_ipywidgets_js: dict[str, Any] = {}  # the default loads scripts from elsewhere
suppress_warnings = ["mystnb.unknown_mime_type", "myst.header"]

html_theme = "furo"
html_title = "dynamic-at"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_js_files = [("filter.js", {"defer": "defer"})]
html_math_renderer = "mathml"
html_show_search_summary = False  # a search would fetch pages, which a browser refuses for files on a disk
html_copy_source = False
html_theme_options = {"top_of_page_buttons": []}


def mathml(equation: str, display: str) -> str:
    """An equation in LaTeX, inline or a block, as MathML; without a name space, which HTML does not need."""
    known = equation.replace(r"\arg", r"\operatorname{arg}")
    return str(convert(known, display=display)).replace(' xmlns="http://www.w3.org/1998/Math/MathML"', "")


def _inline(self: Any, node: nodes.math) -> None:
    self.body.append(mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def _block(self: Any, node: nodes.math_block) -> None:
    self.body.append(f'<div class="equation">{mathml(node.astext(), "block")}</div>')
    raise nodes.SkipNode


def setup(app: Any) -> None:
    """Register the renderer of equations."""
    app.add_html_math_renderer("mathml", inline_renderers=(_inline, None), block_renderers=(_block, None))
