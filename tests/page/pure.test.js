// The page's own reckoning, without a browser.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';

import { RECENT_SECONDS, Recent, alerts, counters } from '../../src/http/page/alerts.js';
import * as format from '../../src/http/page/format.js';
import { History, MOMENTS_MAX } from '../../src/http/page/history.js';
import { ROOT } from './service.js';

const plain = (text) => text.replaceAll('\u202f', ' ');

test('what is not known is a dash and never a number', () => {
  for (const name of ['count', 'exact', 'percent', 'bytes', 'milliseconds', 'duration', 'rate']) {
    for (const value of [null, undefined, NaN, Infinity, '5']) assert.equal(format[name](value), '–', `${name} of ${value}`);
  }
  assert.equal(format.money(undefined, 'EUR'), '–');
});

test('numbers are told as people read them, whatever their size', () => {
  assert.deepEqual([0, 7, 99_999, 100_000, 1_234_567, 9e15].map(format.count), ['0', '7', '99,999', '100K', '1.23M', '9000T']);
  assert.deepEqual([0, 1, 0.5, 0.99999, 0.0001, 0.873].map(format.percent).map(plain), ['0 %', '100 %', '50.0 %', '> 99.9 %', '< 0.1 %', '87.3 %']);
  assert.deepEqual([0, 999, 1000, 1_048_576, 5e12, 1e18].map(format.bytes), ['0 B', '999 B', '0.977 KiB', '1 MiB', '4.55 TiB', '888 PiB']);
  assert.deepEqual([0.012, 0.9999, 1.5, 88.21, 999.7, 65_000].map(format.milliseconds), ['12 µs', '1 ms', '1.5 ms', '88.2 ms', '1 s', '65 s']);
  assert.deepEqual([0, 59.9, 61, 3600, 3700, 90_000].map(format.duration), ['0 s', '59 s', '1 min 1 s', '1 h', '1 h 1 min', '1 d 1 h']);
  assert.deepEqual([0, 0.00012, 8.219, 1234.5, 12_345_678].map((amount) => format.money(amount, 'USD')), ['$0.00', '$0.00012', '$8.22', '$1,234.50', '$12.35M']);
  assert.deepEqual([0.25, 3.14159, 1234].map(format.rate), ['0.25', '3.14', '1,234']);
  assert.deepEqual([format.entries(1), format.entries(2000)], ['1 entry', '2,000 entries']);
});

const stats = (hit, computed, uptime, fingerprint = 'f') => {
  const of = { items: { hit, computed }, fingerprint, queue: { texts: 3 } };
  return [{ ...of, http: { uptime_seconds: uptime, latency: { hits: { p99_ms: 1 }, misses: { p99_ms: null } } } }, of];
};

test('rates are differences, and none is made of a restart, a gap or another model', () => {
  const history = new History();
  const add = (time, ...of) => history.add(time, ...stats(...of));
  const last = () => history.moments.at(-1).rates && Object.fromEntries(history.moments.at(-1).rates);
  add(100, 10, 10, 50);
  assert.equal(last(), null);
  assert.equal(history.rate, null);
  add(102, 30, 10, 52);
  assert.deepEqual([last(), history.rate], [{ hit: 10, computed: 0 }, 10]);
  add(104, 5, 1, 1);
  assert.equal(last(), null, 'a restart');
  add(106, 9, 1, 3);
  assert.deepEqual(last(), { hit: 2, computed: 0 });
  add(166, 900, 1, 63);
  assert.equal(last(), null, 'a gap');
  add(168, 902, 1, 65, 'g');
  assert.equal(last(), null, 'another model');
  history.skip(170);
  history.skip(172);
  assert.equal(history.moments.length, 7, 'one moment says that nothing is known');
  assert.deepEqual(history.moments.at(-1), { time: 170, rates: null, hits: null, misses: null, queue: null });
});

test('the history is bounded', () => {
  const history = new History();
  for (let second = 0; second < MOMENTS_MAX * 2; second += 1) history.add(second, ...stats(second, 0, second));
  assert.equal(history.moments.length, MOMENTS_MAX);
  assert.equal(history.moments[0].time, MOMENTS_MAX);
});

const METRICS = `# HELP vecmemo_queue_refused_texts Texts
vecmemo_queue_refused_texts_total{lane="query"} 3
vecmemo_queue_refused_texts_total{lane="ingest"} 4
vecmemo_queue_refused_texts_total{lane="warm-up"} 100
vecmemo_inference_failures_total 2
vecmemo_store_write_errors_total{model="a"} 1
vecmemo_store_write_errors_total{model="b"} 1
vecmemo_http_requests_total{route="/embed",status="2xx"} 90
vecmemo_http_requests_total{route="/embed",status="5xx"} 10
vecmemo_http_requests_total{route="/stats",status="5xx"} 1000
# EOF
`;

test('counters are summed over models, lanes and routes that matter', () => {
  assert.deepEqual(counters(METRICS), { refused: 7, failures: 2, unwritten: 0, writeErrors: 2, requests: 100, errors: 10 });
});

test('what happened long ago is told no more, and a restart begins anew', () => {
  const recent = new Recent();
  const none = counters('');
  const at = (time, failures) => {
    recent.add(time, { ...none, failures });
    return recent.grown('failures');
  };
  assert.deepEqual([at(0, 5), at(10, 7), at(20, 7), at(RECENT_SECONDS + 9, 7), at(RECENT_SECONDS + 20, 7), at(RECENT_SECONDS + 30, 1)], [0, 2, 2, 2, 0, 0]);
});

const WELL = {
  cache_enabled: true,
  queue: { texts: 0, texts_max: 100, lanes: [] },
  store: { degraded: null, quarantined: 0, lost_pages: 0 },
  windows: { '15m': { items: {}, hit_rate: null }, '1h': { items: {}, hit_rate: null } },
  reuse: { audits: 0, violations: 0, fields: [] },
};
const READY = { status: 'ready', store: 'ok', cache: 'on', model: 'ok' };
const told = (of, { ready = READY, recent = new Recent(), models = [['m', { ...WELL, ...of }]] } = {}) =>
  alerts({ models, ready, recent, now: 1000 }).map(({ severity, name, title }) => `${severity} ${name} ${title}`);

test('a service that is well has no alerts', () => {
  assert.deepEqual(told({}), []);
  assert.deepEqual(told({ reuse: null, remote: undefined, windows: undefined, queue: undefined, store: undefined }), []);
});

test('each condition is told, what is for now first', () => {
  const certificate = { suspended: true, expires: 2000 };
  const found = told({
    cache_enabled: false,
    queue: { texts: 80, texts_max: 100, lanes: [] },
    store: { degraded: 'a sync failed', quarantined: 2, lost_pages: 0 },
    remote: { ready: false, notices_pending: 4, error: 'refused' },
    windows: { '15m': { items: { hit: 1, computed: 1000 }, hit_rate: 0.001 }, '1h': { items: {}, hit_rate: 0.5 } },
    reuse: { audits: 200, violations: 20, fields: [{ namespace: 'n', certificates: [certificate, { suspended: true, expires: 10 }] }] },
  });
  const names = found.map((line) => line.split(' ').slice(0, 2).join(' '));
  assert.deepEqual(names, [
    'page VecmemoStoreDegraded', 'page VecmemoInvalidationsUntold', 'ticket VecmemoEntriesDamaged', 'ticket VecmemoCacheOff', 'ticket VecmemoTierAway',
    'ticket ', 'ticket VecmemoHitRateFell', 'ticket VecmemoReuseSuspended', 'ticket VecmemoReuseViolations',
  ]);
  assert.match(found[5], /queue is near full: 80 of 100/);
  assert.match(found[7], /1 certificate of reuse/);
});

test('one lane that is full is told though the queue is not', () => {
  const lanes = [{ lane: 'query', texts: 9, texts_max: 10 }, { lane: 'ingest', texts: 0, texts_max: 90 }];
  assert.match(told({ queue: { texts: 9, texts_max: 100, lanes } })[0], /in the lane query/);
});

test('what /ready says is told once', () => {
  assert.match(told({}, { ready: { status: 'not ready', detail: 'shutting down' } })[0], /Not ready: shutting down/);
  assert.match(told({}, { ready: { ...READY, store: 'degraded: the last 3 writes failed' } })[0], /^page .*3 writes failed/);
  assert.match(told({}, { ready: { ...READY, store: 'damaged: put aside at start' } })[0], /^ticket /);
  assert.match(told({}, { ready: { ...READY, model: 'upstream is away' } })[0], /upstream is away/);
  assert.equal(told({ store: { degraded: 'x' } }, { ready: { ...READY, store: 'degraded: x' } }).length, 1);
});

test('of several models the alert says which', () => {
  const models = [['a', WELL], ['b', { ...WELL, cache_enabled: false }]];
  assert.match(told({}, { models })[0], /b: The cache is switched off/);
});

test('counters that grew are told', () => {
  const recent = new Recent();
  recent.add(0, counters(''));
  recent.add(10, counters(METRICS));
  const names = told({}, { recent }).map((line) => line.split(' ')[1]);
  assert.deepEqual(names, ['VecmemoModelFails', 'VecmemoQueueRefuses', 'VecmemoWritesFail', 'VecmemoErrorBudgetBurnsFast']);
});

test('alerts have the names of those that Prometheus has', () => {
  const rules = readFileSync(join(ROOT, 'deploy/prometheus/alerts.yaml'), 'utf8');
  const named = readFileSync(join(ROOT, 'src/http/page/alerts.js'), 'utf8').match(/'Vecmemo\w+'/g);
  assert.ok(named.length > 10);
  for (const name of named) assert.ok(rules.includes(`alert: ${name.slice(1, -1)}\n`), name);
});
