"""Configuration of the documentation site: `make docs`."""

import xrec_jax

project = "xrec_jax"
author = "The xrec_jax authors"
release = version = xrec_jax.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
default_role = "code"  # docstrings write names in single backticks
nitpicky = False

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "show-inheritance": True}
python_maximum_signature_line_length = 100
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

copybutton_exclude = ".linenos, .gp, .go"

html_show_copyright = False
html_theme = "furo"
html_title = f"xrec_jax {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"navigation_with_keys": True}


def _as_rst(app, what, name, obj, options, lines):
    """Makes reStructuredText of the docstrings' plain text, before napoleon reads their sections.

    A colon, a blank line and an indented block are a literal block; bars are no substitutions.
    """
    del app, what, name, obj, options
    literal = -1  # indentation of the line that introduces the block
    for i, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if literal >= 0:
            if not line.strip() or indent > literal:
                continue
            literal = -1
        following = next((n for n in lines[i + 2 :] if n.strip()), "")
        blank = i + 1 < len(lines) and line.strip() and not lines[i + 1].strip()
        if blank and len(following) - len(following.lstrip()) >= indent + 4:
            if line.rstrip().endswith(":"):
                lines[i] = line.rstrip() + ":"
                literal = indent
            elif line.rstrip().endswith(","):
                lines[i] = line.rstrip() + " ::"
                literal = indent
        parts = lines[i].split("`")  # every second one is code
        for k in range(0, len(parts), 2):
            parts[k] = parts[k].replace("|", r"\|")
            if k and parts[k][:1].isalnum():  # "`Name`s"
                parts[k] = "\\ " + parts[k]
        lines[i] = "`".join(parts)


def _skip(app, what, name, obj, skip, options):
    """Leaves out fields that the class's own docstring describes."""
    del app, what, options
    generated = str(getattr(obj, "__doc__", "") or "").startswith("Alias for field number")
    return True if generated or name == "replace" else skip


def setup(app):
    """Registers the hooks on docstrings and members."""
    app.connect("autodoc-skip-member", _skip)
    app.connect("autodoc-process-docstring", _as_rst, priority=100)
