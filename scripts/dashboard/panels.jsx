// Draws a dashboard's panels with Grafana's own components, from what a Prometheus has answered (`window.dashboard`, see picture.py).
import { createRoot } from "react-dom/client";
import { FieldType, createTheme, dateTime, getDisplayProcessor, toDataFrame } from "@grafana/data";
import "uplot/dist/uPlot.min.css";
import { BigValue, BigValueColorMode, BigValueGraphMode, BigValueTextMode, PanelChrome, ThemeContext, TimeSeries } from "@grafana/ui";

const theme = createTheme({ colors: { mode: window.dashboard.mode } });
const COLUMN = 62, ROW = 38, GAP = 8;

function named(format, labels) {
  return format ? format.replace(/\{\{\s*(\w+)\s*\}\}/g, (_, label) => labels[label] ?? "") : Object.entries(labels).map(([label, value]) => `${label}="${value}"`).join(", ");
}

// The dashboard has no overrides: a field's settings are the panel's, and Grafana's default colours.
function frames(panel) {
  const settings = panel.type === "stat" ? panel.fieldConfig.defaults : { color: { mode: "palette-classic" }, ...panel.fieldConfig.defaults };
  const series = panel.answers.flatMap(({ format, series }) => series.map((one) => ({ format, ...one })));
  return series.map(({ format, metric, values }, seriesIndex) => {
    const frame = toDataFrame({
      fields: [
        { name: "Time", type: FieldType.time, values: values.map(([time]) => time * 1000), config: {} },
        {
          name: "Value", type: FieldType.number, labels: metric,
          values: values.map(([, value]) => (value === "NaN" ? null : Number(value))),
          config: { ...settings, displayName: named(format, metric) },
        },
      ],
    });
    frame.fields[1].state = { seriesIndex };
    for (const field of frame.fields) field.display = getDisplayProcessor({ field, theme, timeZone: "utc" });
    return frame;
  });
}

function Stat({ panel, width, height }) {
  const [frame] = frames(panel);
  const field = frame?.fields[1];
  const last = field?.values.filter((value) => value !== null).at(-1);
  const value = field && last !== undefined ? field.display(last) : { text: "No data", numeric: NaN };
  return <BigValue value={{ ...value, title: undefined }} width={width} height={height} theme={theme} colorMode={BigValueColorMode.Value} graphMode={BigValueGraphMode.None} textMode={BigValueTextMode.Value} />;
}

function Series({ panel, width, height }) {
  const [found, { from, to }] = [frames(panel), window.dashboard];
  if (found.length === 0) return <div className="none">No data</div>;
  const range = { from: dateTime(from * 1000), to: dateTime(to * 1000) };
  const legend = { displayMode: "list", placement: "bottom", showLegend: true, calcs: [] };
  return <TimeSeries frames={found} structureRev={1} timeRange={{ ...range, raw: range }} timeZone="utc" width={width} height={height} legend={legend} options={{}} />;
}

function Panel({ panel }) {
  const { x, y, w, h } = panel.gridPos;
  const place = { position: "absolute", left: x * COLUMN, top: y * ROW };
  const [width, height] = [w * COLUMN - GAP, h * ROW - GAP];
  if (panel.type === "row") return <div className="row" style={{ ...place, width, height }}>{panel.title}</div>;
  return (
    <div style={place}>
      <PanelChrome title={panel.title} description={panel.description} width={width} height={height} padding="md">
        {(innerWidth, innerHeight) => panel.type === "stat"
          ? <Stat panel={panel} width={innerWidth} height={innerHeight} />
          : <Series panel={panel} width={innerWidth} height={innerHeight} />}
      </PanelChrome>
    </div>
  );
}

createRoot(document.getElementById("panels")).render(
  <ThemeContext.Provider value={theme}>{window.dashboard.panels.map((panel) => <Panel key={panel.id} panel={panel} />)}</ThemeContext.Provider>);
document.body.style.background = theme.colors.background.canvas;
document.body.style.color = theme.colors.text.primary;
