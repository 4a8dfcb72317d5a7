// A vecmemo with the tiny model, as a child process, and traffic for it.

import { spawn, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { createInterface } from 'node:readline';

export const ROOT = resolve(import.meta.dirname, '../..');
const PROGRAM = resolve(process.env.VECMEMO_BIN ?? join(ROOT, process.env.CARGO_TARGET_DIR ?? 'target', 'debug/vecmemo'));

/** A key as `vecmemo keys new` makes it: what a client sends, and the table for the file. */
export function newKey(...settings) {
  const { status, stdout, stderr } = spawnSync(PROGRAM, ['keys', 'new', ...settings], { encoding: 'utf8' });
  if (status !== 0) throw new Error(stderr);
  return { token: /vm_\S+/.exec(stderr)[0], table: stdout };
}

export class Service {
  #folder = mkdtempSync(join(tmpdir(), 'vecmemo-page-'));
  #process = null;
  #settings;
  url = null;

  constructor(settings = ['--capacity-entries', '4096']) {
    this.#settings = settings;
  }

  /** Starts it; again where it was, if it was there before. */
  async start() {
    const port = this.url ? new URL(this.url).port : 0;
    const environment = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith('VECMEMO_')));
    const model = join(ROOT, 'tests/data/models/tiny-mean');
    const settings = ['serve', '--listen', `127.0.0.1:${port}`, '--model', model, '--data-dir', 'data'];
    const child = spawn(PROGRAM, [...settings, ...this.#settings], { cwd: this.#folder, env: environment, stdio: ['ignore', 'ignore', 'pipe'] });
    this.#process = child;
    const said = [];
    const lines = createInterface({ input: child.stderr });
    this.url = await new Promise((found, failed) => {
      lines.on('line', (line) => {
        said.push(line);
        const ready = /curl -s (http:\/\/127\.0\.0\.1:\d+)\/embed/.exec(line);
        if (ready) found(ready[1]);
      });
      child.on('error', failed);
      child.on('exit', (code) => failed(new Error(`the service ended (${code}): ${said.join('\n')}`)));
    });
    return this;
  }

  /** SIGKILL. */
  async kill() {
    if (!this.#process || this.#process.exitCode !== null || this.#process.signalCode !== null) return;
    const ended = new Promise((end) => this.#process.once('exit', end));
    this.#process.kill('SIGKILL');
    await ended;
  }

  async end() {
    await this.kill();
    rmSync(this.#folder, { recursive: true, force: true });
  }

  async post(path, body) {
    const answer = await fetch(this.url + path, { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) });
    if (!answer.ok) throw new Error(`${path}: ${answer.status} ${await answer.text()}`);
    return answer.json();
  }

  async get(path) {
    const answer = await fetch(this.url + path);
    return answer.json();
  }

  embed(inputs, more = {}) {
    return this.post('/embed', { inputs, ...more });
  }
}

/** A tag that would run a script if it were taken for markup. */
export const HOSTILE = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>';

/** Asks as clients do: new texts, the same again, other spellings, duplicates, tags, payloads, namespaces. */
export async function traffic(service) {
  const words = ['river', 'mountain', 'harbour', 'garden', 'railway', 'library', 'orchard', 'lantern', 'compass', 'meadow'];
  const text = (number) => `the ${words[number % 10]} near the ${words[(number * 7 + 3) % 10]} number ${number}`;
  const texts = Array.from({ length: 120 }, (_, number) => text(number));
  for (let first = 0; first < texts.length; first += 20) {
    const tags = ['corpus:places', first < 60 ? 'lang:en' : 'lang:de', ...(first === 0 ? [HOSTILE] : [])];
    await service.embed(texts.slice(first, first + 20), { tags });
  }
  await service.embed(['a ticket about a lamp', 'a ticket about a door'], { namespace: 'tickets', tags: ['ticket'] });
  await service.embed('an entry with a payload', { tags: ['noted', HOSTILE], payload: { title: '<b>bold</b>', id: 7 } });
  for (const round of [0, 1, 2]) {
    await service.embed(texts.slice(round * 30, round * 30 + 30));
    await service.embed(texts[round]);
  }
  await service.embed(texts.slice(0, 5).map((one) => one.toUpperCase()));
  await service.embed(['the same new text', 'the same new text']);
}
