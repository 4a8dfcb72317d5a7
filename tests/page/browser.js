// A browser for the tests, and a page that remembers what went wrong in it.

import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';

import { chromium } from 'playwright-core';

const AXE = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');

// Nothing of the browser's own goes to the network. A fresh folder for its data is made for each start.
const FLAGS = [
  '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync',
];

// Where the page's own files are taken from instead of from the program, if anywhere.
const FOLDER = process.env.VECMEMO_PAGE_FOLDER;

export function launch() {
  return chromium.launch({ executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', headless: true, args: FLAGS });
}

/** A page in a context of its own. Its `problems` are errors and warnings of its console, exceptions, and violations of its policy. */
export async function open(browser, url, { scheme = 'light', width = 1280, height = 900, before = async () => {} } = {}) {
  const context = await browser.newContext({ colorScheme: scheme, viewport: { width, height }, reducedMotion: 'reduce' });
  const page = await context.newPage();
  page.problems = [];
  page.on('console', (message) => {
    if (['error', 'warning'].includes(message.type())) page.problems.push(`${message.type()}: ${message.text()} ${message.location().url}`);
  });
  page.on('pageerror', (error) => page.problems.push(`exception: ${error.stack}`));
  await page.exposeFunction('tellViolation', (directive, what) => page.problems.push(`policy: ${directive} ${what}`));
  await page.addInitScript(() => {
    document.addEventListener('securitypolicyviolation', (event) => globalThis.tellViolation(event.violatedDirective, event.blockedURI));
  });
  if (FOLDER) await page.route(/\/(page\/(?!uplot)[^/]*)?$/, (route) => fromFolder(route));
  await before(page);
  await page.goto(url);
  return page;
}

/** The program's answer, with the file's content. */
async function fromFolder(route) {
  const name = new URL(route.request().url()).pathname.replace(/^\/(page\/)?/, '') || 'index.html';
  const response = await route.fetch();
  await route.fulfill({ response, body: readFileSync(join(FOLDER, name)) });
}

/** What axe finds against WCAG A and AA, one line each. */
export async function violations(page) {
  await page.evaluate(AXE);
  const tags = ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice'];
  const found = await page.evaluate((values) => globalThis.axe.run(document, { runOnly: { type: 'tag', values } }), tags);
  return found.violations.flatMap(({ id, nodes }) => nodes.map(({ target, failureSummary }) => `${id}: ${target.join(' ')}: ${failureSummary}`));
}

/** The value of a figure. */
export function figure(page, name) {
  return page.locator(`[data-figure="${name}"]`).first().evaluate((found) => found.value);
}

/** By how much the page is wider than its window. */
export function overhang(page) {
  return page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
}

/** Waits until something is so; fails with what was found last. */
export async function until(what, found, patienceMs = 15_000) {
  const ends = Date.now() + patienceMs;
  for (;;) {
    const problem = await found();
    if (!problem) return;
    if (Date.now() > ends) throw new Error(`${what}: ${problem}`);
    await new Promise((wake) => setTimeout(wake, 50));
  }
}
