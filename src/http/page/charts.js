// Charts over time, drawn by uPlot: inputs a second by source (stacked), latency, queue.

import { by, element, say } from './elements.js';
import { count, milliseconds, rate } from './format.js';
import { SOURCES } from './figures.js';

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name.replace('_', '-')}`).trim();
const clock = new Intl.DateTimeFormat('en-GB', { hour: '2-digit', minute: '2-digit', second: '2-digit' });

// What is stacked highest is drawn first and covered by what is below it.
const STACKED = SOURCES.map(([status]) => status).toReversed();
const NAMES = new Map(SOURCES.map(([status, name]) => [status, name]));

/** A time on an axis: with seconds where minutes would all be the same. */
function told(time, times) {
  const seconds = times.length > 1 && times[1] - times[0] < 60;
  return clock.format(time * 1000).slice(0, seconds ? 8 : 5);
}

/** What is common to all: axes in the page's colours, no legend of its own, nothing to zoom. */
function options(series, { format, scale = {}, splits = null }, onCursor) {
  const axis = { stroke: colour('soft'), font: '12px system-ui, sans-serif', grid: { stroke: colour('line'), width: 1 }, ticks: { show: false } };
  return {
    width: 10,
    height: 10,
    legend: { show: false },
    cursor: { y: false, drag: { x: false, y: false }, points: { show: false } },
    scales: { x: { time: true }, y: scale },
    series: [{}, ...series],
    axes: [
      { ...axis, grid: { show: false }, size: 26, space: 90, values: (_, times) => times.map((time) => told(time, times)) },
      { ...axis, size: 64, space: 34, ...(splits && { splits }), values: (_, values) => values.map((value) => (value === null ? '' : format(value))) },
    ],
    hooks: { setCursor: [onCursor] },
  };
}

class Chart {
  #host;
  #readout;
  #make;
  #describe;
  #plot = null;
  #data = null;

  constructor(name, make, describe) {
    this.#host = by(`${name}-chart`);
    this.#readout = by(`${name}-readout`);
    this.#make = make;
    this.#describe = describe;
    this.#host.append(element('span', { className: 'waiting' }, 'Drawn as figures come in.'));
    new ResizeObserver(() => this.#resize()).observe(this.#host);
  }

  show(data, label) {
    this.#data = data;
    const enough = data[0].length > 1;
    this.#host.querySelector('.waiting').hidden = enough;
    this.#host.setAttribute('aria-label', label);
    if (!enough) return;
    if (!this.#plot) this.#draw();
    else this.#plot.setData(data);
  }

  /** In the colours of another scheme. */
  redraw() {
    this.#plot?.destroy();
    this.#plot = null;
    if (this.#data?.[0].length > 1) this.#draw();
  }

  #draw() {
    const read = (plot) => {
      const at = plot.cursor.idx;
      say(this.#readout, at === null || at === undefined ? '' : this.#describe(plot.data, at));
    };
    this.#plot = new globalThis.uPlot(this.#make(read), this.#data, this.#host);
    this.#resize();
  }

  #resize() {
    const { clientWidth: width, clientHeight: height } = this.#host;
    if (this.#plot && width > 0 && (this.#plot.width !== width || this.#plot.height !== height)) this.#plot.setSize({ width, height });
  }
}

const at = (data, index) => clock.format(data[0][index] * 1000);
const fromZero = (least) => ({ range: (_, low, high) => [0, Math.max(high ?? 0, least) * 1.08] });

/** Latencies differ by powers of ten. */
const decades = {
  distr: 3,
  range: (_, low, high) => [10 ** Math.floor(Math.log10(Math.max(low || 0.1, 0.001))), 10 ** Math.ceil(Math.log10(Math.max(high || 10, 0.01) * 1.01))],
};

const powersOfTen = (_, __, low, high) => {
  const [first, last] = [Math.round(Math.log10(low)), Math.round(Math.log10(high))];
  return Array.from({ length: last - first + 1 }, (_, step) => 10 ** (first + step));
};

export class Charts {
  #tiers = new Chart(
    'tiers',
    (read) =>
      options(
        STACKED.map((status) => ({ stroke: colour(status), fill: colour(status), width: 0, points: { show: false } })),
        { format: rate, scale: fromZero(1) },
        read,
      ),
    (data, index) => {
      if (data[1][index] === null) return `${at(data, index)}: not known`;
      // The stack's layers, told apart again.
      const parts = STACKED.map((status, layer) => [status, data[layer + 1][index] - (data[layer + 2]?.[index] ?? 0)]).filter(([, value]) => value > 0);
      return `${at(data, index)}: ${parts.length === 0 ? 'none' : parts.toReversed().map(([status, value]) => `${NAMES.get(status)} ${rate(value)}`).join(', ')}`;
    },
  );

  #latency = new Chart(
    'latency',
    (read) =>
      options(
        ['hit', 'computed'].map((status) => ({ stroke: colour(status), width: 2, points: { show: false }, spanGaps: false })),
        { format: milliseconds, scale: decades, splits: powersOfTen },
        read,
      ),
    (data, index) => `${at(data, index)}: cached ${milliseconds(data[1][index] ?? undefined)}, computed ${milliseconds(data[2][index] ?? undefined)}`,
  );

  #queue = new Chart(
    'queue',
    (read) => options([{ stroke: colour('joined'), fill: `${colour('joined')}33`, width: 2, points: { show: false } }], { format: count, scale: fromZero(10) }, read),
    (data, index) => `${at(data, index)}: ${count(data[1][index] ?? undefined)}`,
  );

  constructor() {
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => {
      for (const chart of [this.#tiers, this.#latency, this.#queue]) chart.redraw();
    });
  }

  show(history) {
    const moments = history.moments;
    const times = moments.map(({ time }) => time);
    const last = moments.at(-1);
    const stacked = moments.map(({ rates }) => {
      if (!rates) return STACKED.map(() => null);
      let sum = 0;
      return STACKED.toReversed().map((status) => (sum += rates.get(status) ?? 0)).reverse();
    });
    const layers = STACKED.map((_, layer) => stacked.map((sums) => sums[layer]));
    this.#tiers.show([times, ...layers], `Inputs answered a second by source, over time; now ${rate(history.rate ?? undefined)}. The table has the sums.`);
    this.#latency.show(
      [times, moments.map(({ hits }) => hits), moments.map(({ misses }) => misses)],
      `Latency over time, 99 of 100 requests; now ${milliseconds(last?.hits ?? undefined)} if cached, ${milliseconds(last?.misses ?? undefined)} if computed`,
    );
    this.#queue.show([times, moments.map(({ queue }) => queue)], `Texts in the queue over time; now ${count(last?.queue ?? undefined)}`);
  }
}
