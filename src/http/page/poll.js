// Asking again and again: every two seconds while somebody looks, more and more seldom while nobody answers.

import { Refused, ask } from './access.js';

const PAUSE_MS = 2_000;
const PAUSE_MS_MAX = 30_000;

/** `/metrics` is long and asked for more seldom. */
const METRICS_EVERY_MS = 10_000;

export class Poller {
  #told;
  #timer = null;
  #failures = 0;
  #paused = false;
  #round = 0;
  #metricsAt = -Infinity;
  #info = null;

  /** `told` is given what every round has found: `{stats, ready, metrics, info}` or `{error, nextMs}`. */
  constructor(told) {
    this.#told = told;
    document.addEventListener('visibilitychange', () => this.#visibility());
  }

  start() {
    this.now();
  }

  /** Begins a round at once; one that is under way is forgotten. */
  now() {
    clearTimeout(this.#timer);
    this.#round += 1;
    if (this.#idle) return;
    void this.#ask(this.#round);
  }

  get paused() {
    return this.#paused;
  }

  set paused(paused) {
    this.#paused = paused;
    this.now();
  }

  get #idle() {
    return this.#paused || document.visibilityState === 'hidden';
  }

  #visibility() {
    if (document.visibilityState === 'hidden') {
      clearTimeout(this.#timer);
      this.#round += 1;
    } else {
      this.now();
    }
  }

  async #ask(round) {
    let found;
    try {
      found = await this.#everything();
      this.#failures = 0;
    } catch (error) {
      this.#failures += 1;
      this.#info = null;
      found = { error };
    }
    // Somebody has paused, hidden or begun anew meanwhile.
    if (round !== this.#round) return;
    const pause = Math.min(PAUSE_MS * 2 ** Math.max(this.#failures - 1, 0), PAUSE_MS_MAX);
    this.#timer = setTimeout(() => this.now(), pause);
    this.#told({ ...found, nextMs: pause });
  }

  async #everything() {
    const wantsMetrics = performance.now() - this.#metricsAt >= METRICS_EVERY_MS;
    const [stats, ready, metrics, info] = await Promise.all([
      ask('/stats?census=true'),
      readiness(),
      wantsMetrics ? optional(ask('/metrics', { as: 'text' })) : null,
      this.#info ?? optional(ask('/info')),
    ]);
    if (metrics) this.#metricsAt = performance.now();
    this.#info = info;
    return { stats, ready, metrics, info };
  }
}

/** Not to be ready is an answer. */
async function readiness() {
  try {
    return await ask('/ready');
  } catch (error) {
    if (error instanceof Refused && error.status === 503) return { status: 'not ready', detail: error.message };
    return null;
  }
}

/** What the page can do without. */
async function optional(asking) {
  try {
    return await asking;
  } catch {
    return null;
  }
}
