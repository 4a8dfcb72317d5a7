// Asking the service, with the reader's key if there is one. The key is kept in this tab's session storage and nowhere else.

const PLACE = 'vecmemo-key';
const PATIENCE_MS = 10_000;

// A browser may refuse storage; the key is then kept as long as the page.
let kept = null;

/** The key in use; empty if there is none. */
export function key() {
  if (kept === null) {
    try {
      kept = sessionStorage.getItem(PLACE) ?? '';
    } catch {
      kept = '';
    }
  }
  return kept;
}

/** Uses a key from now on; none if it is empty. */
export function useKey(text) {
  kept = text.trim();
  try {
    if (kept) sessionStorage.setItem(PLACE, kept);
    else sessionStorage.removeItem(PLACE);
  } catch {
    // It is kept in memory.
  }
}

/** The service answered, and not as was hoped. `status` 0: it did not answer. */
export class Refused extends Error {
  constructor(status, message, body = null) {
    super(message);
    this.status = status;
    this.body = body;
  }

  get needsKey() {
    return this.status === 401;
  }

  get forbids() {
    return this.status === 403;
  }
}

/** What to tell somebody whose request was refused. */
export function explained(error) {
  if (!(error instanceof Refused)) return `This page has failed: ${error.message}`;
  if (error.needsKey) return key() ? 'The service does not know this API key (401). Enter another one above.' : 'The service asks for an API key (401). Enter it above.';
  if (error.forbids) return `This API key may not do that (403). ${error.message}`;
  if (error.status === 0) return 'The service does not answer.';
  return `${error.message} (${error.status})`;
}

/** Asks; answers what the body's JSON, or its text, says. */
export async function ask(path, { body, as = 'json', patience = PATIENCE_MS } = {}) {
  const headers = {};
  if (key()) headers.Authorization = `Bearer ${key()}`;
  if (body !== undefined) headers['Content-Type'] = 'application/json';
  let answer;
  let text;
  try {
    answer = await fetch(path, {
      method: body === undefined ? 'GET' : 'POST',
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      cache: 'no-store',
      credentials: 'omit',
      redirect: 'error',
      signal: AbortSignal.timeout(patience),
    });
    text = await answer.text();
  } catch (error) {
    throw new Refused(0, error.name === 'TimeoutError' ? 'no answer in time' : 'no answer');
  }
  const parsed = parse(text);
  if (!answer.ok) {
    const message = parsed?.detail ?? parsed?.error?.message ?? (typeof parsed?.error === 'string' ? parsed.error : null);
    throw new Refused(answer.status, message ?? answer.statusText, parsed);
  }
  if (as === 'text') return text;
  if (parsed === undefined) throw new Refused(answer.status, 'the answer is not JSON');
  return parsed;
}

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
