"""Memory over time as an SVG picture that can be read on light and on dark."""

from service import MIB

WIDTH, HEIGHT = 760, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 150, 24, 44
STYLE = """<style>
  text { font: 12px system-ui, sans-serif; fill: #1f2328 } .axis { stroke: #8c959f } .grid { stroke: #d0d7de; stroke-width: .5 }
  .resident { stroke: #0969da; fill: none; stroke-width: 1.5 } .own { stroke: #bc4c00; fill: none; stroke-width: 1.5 }
  .of-resident { fill: #0969da } .of-own { fill: #bc4c00 } .ground { fill: #ffffff }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .grid { stroke: #30363d } .ground { fill: #0d1117 }
    .resident { stroke: #58a6ff } .of-resident { fill: #58a6ff } .own { stroke: #f0883e } .of-own { fill: #f0883e }
  }
</style>"""


def step(highest, marks=5):
    """A round distance between marks."""
    least = highest / marks
    power = 10 ** (len(str(int(least))) - 1) if least >= 1 else 1
    return next(size * power for size in (1, 2, 5, 10) if size * power >= least)


def drawn(rows):
    """Rows of seconds, resident bytes and own bytes."""
    seconds = max(rows[-1][0], 1)
    highest = max(resident for _, resident, _ in rows) / MIB * 1.1
    per_minute = seconds >= 300
    right, floor = WIDTH - RIGHT, HEIGHT - BOTTOM

    def x(at):
        return LEFT + (right - LEFT) * at / seconds

    def y(value):
        return floor - (floor - TOP) * value / highest

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="memory of the service over time">', STYLE,
             f'<rect class="ground" width="{WIDTH}" height="{HEIGHT}"/>']
    size = step(highest)
    for at in range(int(highest // size) + 1):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y(at * size):.1f}" y2="{y(at * size):.1f}"/>'
                     f'<text x="{LEFT - 8}" y="{y(at * size) + 4:.1f}" text-anchor="end">{at * size:.0f}</text>')
    unit = 60 if per_minute else 1
    size = step(seconds / unit)
    for at in range(int(seconds / unit // size) + 1):
        parts.append(f'<text x="{x(at * size * unit):.1f}" y="{floor + 18}" text-anchor="middle">{at * size:.0f}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{floor}" y2="{floor}"/><line class="axis" x1="{LEFT}" x2="{LEFT}" y1="{TOP}" y2="{floor}"/>')
    for name, column, what in (("resident", 1, "resident"), ("own", 2, "of it own")):
        points = " ".join(f"{x(row[0]):.1f},{y(row[column] / MIB):.1f}" for row in rows)
        parts.append(f'<polyline class="{name}" points="{points}"/>'
                     f'<text class="of-{name}" x="{right + 8}" y="{y(rows[-1][column] / MIB) + 4:.1f}">{what}, {rows[-1][column] / MIB:.0f} MiB</text>')
    parts.append(f'<text x="{LEFT}" y="{TOP - 8}">MiB</text><text x="{(LEFT + right) / 2:.0f}" y="{HEIGHT - 8}" text-anchor="middle">{"minutes" if per_minute else "seconds"}</text></svg>')
    return "\n".join(parts) + "\n"
