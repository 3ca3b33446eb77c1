"""Draws docs/assets.svg: the asset graph of all domains, from source to mart.

    .venv/bin/python scripts/draw_graph.py

A domain is a lane, a layer is a column; every asset and every dependency that Dagster knows is
there, and nothing else.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from xml.sax.saxutils import escape

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))
PICTURE = PROJECT / "docs" / "assets.svg"

COLUMNS = ("source", "lake", "raw", "staging", "intermediate", "marts", "marts of marts")
COLOURS = ("#eceff1", "#e3f2fd", "#e3f2fd", "#fff3e0", "#fff3e0", "#e8f5e9", "#e8f5e9")
FONT = "font-family='ui-monospace,Menlo,Consolas,monospace' font-size='11'"
#: Pixels: a letter, a box and the space around it.
LETTER, BOX, ROW, GAP, MARGIN, LANE, HEAD = 6.7, 20, 27, 46, 12, 26, 34

#: An asset's key.
Key = tuple[str, ...]


def graph() -> dict[Key, tuple[str, list[Key]]]:
    """Every asset with its domain and the assets that it depends on, not by way of another one."""
    from dagster_project.domain import domain_names
    from dagster_project.locations.location import domain_definitions

    found: dict[Key, tuple[str, list[Key]]] = {}
    for domain in domain_names():
        assets = domain_definitions(domain).resolve_asset_graph()
        for key in assets.get_all_asset_keys():
            # What another domain defines appears here as a mere name.
            if assets.get(key).group_name == domain:
                parents = sorted(tuple(parent.path) for parent in assets.get(key).parent_keys)
                found[tuple(key.path)] = (domain, parents)
    above: dict[Key, set[Key]] = {}

    def ancestors(key: Key) -> set[Key]:
        if key not in above:
            parents = found[key][1] if key in found else []
            above[key] = set(parents).union(*map(ancestors, parents))
        return above[key]

    return {
        key: (domain, [p for p in parents if not any(p in ancestors(o) for o in parents)])
        for key, (domain, parents) in sorted(found.items())
    }


def column(key: Key, assets: Mapping[Key, tuple[str, list[Key]]]) -> int:
    """The layer of an asset, as an index into COLUMNS."""
    first, last = key[0], key[-1]
    domain, parents = assets[key]
    if first in ("source", "landing"):
        return 0
    if first == "lake":
        return 1
    if first.endswith("_raw"):
        return 2
    if first.endswith("_staging"):
        return 3 if last.startswith("stg_") else 4
    return 6 if any(parent[0] == domain for parent in parents) else 5


def lanes(assets: Mapping[Key, tuple[str, list[Key]]]) -> list[str]:
    """The domains; one that uses others comes after them."""
    from graphlib import TopologicalSorter

    uses: dict[str, set[str]] = {}
    for domain, parents in assets.values():
        uses.setdefault(domain, set()).update(assets[parent][0] for parent in parents)
    for domain, others in uses.items():
        others.discard(domain)
    return list(TopologicalSorter({domain: sorted(uses[domain]) for domain in uses}).static_order())


def draw(assets: Mapping[Key, tuple[str, list[Key]]]) -> str:
    """The picture as SVG."""
    columns = {key: column(key, assets) for key in assets}
    widths = [
        max((len(key[-1]) for key in assets if columns[key] == i), default=0) * LETTER + 14
        for i in range(len(COLUMNS))
    ]
    lefts = [MARGIN + sum(widths[:i]) + i * GAP for i in range(len(COLUMNS))]
    width = round(lefts[-1] + widths[-1] + MARGIN)
    tops: dict[Key, float] = {}
    boxes, top = [], float(HEAD)
    for number, domain in enumerate(lanes(assets)):
        mine = [key for key in assets if assets[key][0] == domain]
        stacks = [_stack(i, mine, columns) for i in range(len(COLUMNS))]
        height = LANE + max(len(stack) for stack in stacks) * ROW + 6
        if number % 2 == 0:
            boxes.append(f"<rect y='{top:g}' width='{width}' height='{height}' fill='#fafafa'/>")
        boxes.append(
            f"<text x='{MARGIN}' y='{top + 17:g}' font-weight='bold' {FONT}>{domain}</text>"
        )
        for stack in stacks:
            tops.update({key: top + LANE + i * ROW for i, key in enumerate(stack)})
        top += height
    titles = [
        f"<text x='{lefts[i]:g}' y='20' fill='#607d8b' {FONT}>{title}</text>"
        for i, title in enumerate(COLUMNS)
    ]
    edges = [
        _edge(
            lefts[columns[parent]] + widths[columns[parent]],
            tops[parent] + BOX / 2,
            lefts[columns[key]],
            tops[key] + BOX / 2,
            crossing=assets[parent][0] != assets[key][0],
        )
        for key in assets
        for parent in assets[key][1]
    ]
    nodes = [
        f"<g><title>{escape('/'.join(key))}</title><rect x='{lefts[i]:g}' y='{tops[key]:g}' "
        f"width='{widths[i]:g}' height='{BOX}' rx='4' fill='{COLOURS[i]}' stroke='#90a4ae'/>"
        f"<text x='{lefts[i] + 7:g}' y='{tops[key] + 14:g}' {FONT}>{escape(key[-1])}</text></g>"
        for key, i in columns.items()
    ]
    size = f"width='{width}' height='{top:g}' viewBox='0 0 {width} {top:g}'"
    lines = [
        f"<svg xmlns='http://www.w3.org/2000/svg' {size}>",
        "<rect width='100%' height='100%' fill='white'/>",
        *(boxes + titles + edges + nodes),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _stack(index: int, keys: Iterable[Key], columns: Mapping[Key, int]) -> list[Key]:
    """A column of a lane, from top to bottom."""
    return sorted((key for key in keys if columns[key] == index), key=lambda key: key[-1])


def _edge(x1: float, y1: float, x2: float, y2: float, crossing: bool) -> str:
    bend = max((x2 - x1) / 2, 20)
    path = f"M{x1:g} {y1:g} C{x1 + bend:g} {y1:g} {x2 - bend:g} {y2:g} {x2:g} {y2:g}"
    colour = "#ef6c00" if crossing else "#b0bec5"
    return f"<path d='{path}' fill='none' stroke='{colour}'/>"


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    PICTURE.write_text(draw(graph()))
    print(f"{PICTURE} drawn")
