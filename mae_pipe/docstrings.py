"""What a docstring says of one argument."""

from __future__ import annotations

import inspect
import re

END = re.compile(r"(?<!\bal)(?<!e\.g)(?<!i\.e)[.;]\s+(?=[A-Z`(])")  # of a sentence
HEADING = re.compile(r"(Args|Arguments|Options|Parameters):?")


def said_of(name: str, *docs: str) -> str:
    """The first thing that ``docs`` say of an argument: its entry in a list, or a sentence that quotes it; or "".

    Lists as Google ("name: ..."), NumPy ("name : type", then a line further in) and Sphinx (":param name:") write them.
    """
    for doc in docs:
        text = inspect.cleandoc(doc)
        if found := _entry(name, text) or _sentence(name, text):
            return found
    return ""


def prose(doc: str) -> str:
    """A docstring without its lists of arguments, a line a paragraph."""
    kept: list[str] = []
    lines = inspect.cleandoc(doc).splitlines()
    while lines:
        line = lines.pop(0)
        if HEADING.fullmatch(line):
            while lines and (not lines[0].strip() or lines[0][0] in " -" or " : " in lines[0]):
                lines.pop(0)
        elif not line.startswith(":param"):
            kept.append(line)
    paragraphs = re.split(r"\n\s*\n", "\n".join(kept).strip())
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs).replace("``", "`")


def _entry(name: str, text: str) -> str:
    lines = text.splitlines()
    for number, line in enumerate(lines):
        head = re.match(r"(\s*)(?::param\s+(?:[\w\[\], ]+\s)?)?((?:\w+, )*\w+)(?: \([^)]*\))?( ?):(.*)$", line)
        if head is None or name not in head[2].split(", "):
            continue
        if not (head[1] or head[3] or ":param" in line):  # a plain sentence with a colon
            continue
        inner = []
        for other in lines[number + 1 :]:
            if not other.strip() or len(other) - len(other.lstrip()) <= len(head[1]):
                break
            inner.append(other.strip())
        first = [] if head[3] else [head[4].strip()]  # after NumPy's colon stands the type
        return " ".join(filter(None, [*first, *inner]))
    return ""


def _sentence(name: str, text: str) -> str:
    for paragraph in re.split(r"\n\s*\n", text):
        for sentence in END.split(" ".join(paragraph.split())):
            quoted = re.findall(r"``(.+?)``|`([^`]+)`", sentence)
            if any(re.search(rf"(?<![\w.]){re.escape(name)}(?!\w)", one or other) for one, other in quoted):
                return sentence.rstrip(".;").replace("``", "").replace("`", "")
    return ""
