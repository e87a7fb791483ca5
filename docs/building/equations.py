"""Equations as outlines in SVG, drawn by matplotlib: no script, no font, no network.

TeX as matplotlib.mathtext knows it. Colour and size are those of the text around.
"""

import html

from docutils import nodes
from matplotlib.font_manager import FontProperties
from matplotlib.path import Path
from matplotlib.textpath import TextPath, text_to_path

EM = 10  # points: outlines are in these, the page in em
FONT = FontProperties(size=EM, math_fontfamily="cm")
COMMANDS = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C"}


def outline(formula: str) -> str:
    """The outline of a formula in SVG's language, y downwards from the baseline."""
    steps = []
    for points, code in TextPath((0, 0), formula, prop=FONT).iter_segments(simplify=False):
        places = " ".join(f"{x:.2f} {-y:.2f}" for x, y in points.reshape(-1, 2))
        steps.append("Z" if code == Path.CLOSEPOLY else COMMANDS[code] + places)
    return "".join(steps)


def drawn(tex: str) -> str:
    """One formula as an <svg> that stands on the line's baseline."""
    formula = f"${' '.join(tex.split())}$"
    width, height, depth = text_to_path.get_text_width_height_descent(formula, FONT, ismath=True)
    return (
        f'<svg class="equation" role="img" aria-label="{html.escape(formula[1:-1])}" '
        f'viewBox="0 {depth - height:.2f} {width:.2f} {height:.2f}" '
        f'style="width:{width / EM:.3f}em;height:{height / EM:.3f}em;'
        f'vertical-align:{-depth / EM:.3f}em"><path d="{outline(formula)}"/></svg>'
    )


def inline(writer, node: nodes.math) -> None:
    """One formula in a line of text."""
    writer.body.append(drawn(node.astext()))
    raise nodes.SkipNode


def block(writer, node: nodes.math_block) -> None:
    """One formula on a line of its own."""
    writer.body.append(f'<div class="math">{drawn(node.astext())}</div>')
    raise nodes.SkipNode


def setup(app):
    app.add_html_math_renderer("outlines", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
