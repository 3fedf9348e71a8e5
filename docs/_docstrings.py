"""The docstrings as mkdocstrings can read them: formulas become MathML, which needs no script, and examples code."""

import re
import textwrap
from typing import Any

import griffe
from latex2mathml.converter import convert

BLOCK = re.compile(r"^( *)\.\. math::(.*(?:\n(?:\1 +.*)?)*)", re.MULTILINE)
INLINE = re.compile(r":math:`([^`]+)`")
SECTION = re.compile(r"^Example:$", re.MULTILINE)
CODE = re.compile(r"::$", re.MULTILINE)  # before a literal block
BROKEN = re.compile(r"(?<!\\)\\\n")  # a space, at the end of a line


class Docstrings(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = translated(obj.docstring.value)


def translated(docstring: str) -> str:
    docstring = BLOCK.sub(_block, docstring)
    docstring = INLINE.sub(lambda found: f"<span>{convert(found[1])}</span>", docstring)
    return CODE.sub(":", SECTION.sub("Examples:", docstring))


def _block(found: re.Match[str]) -> str:
    formula = BROKEN.sub(r"\\; ", textwrap.dedent(found[2]).strip())
    if "&" in formula:
        formula = rf"\begin{{split}} {formula} \end{{split}}"
    return f'{found[1]}<div class="formula">{convert(formula, display="block")}</div>\n\n'
