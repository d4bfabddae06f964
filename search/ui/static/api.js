// Asking the server. The token came with the opening link, after its #, and stays in this origin's storage.

const KEY = 'binsweep-token';

// What the server refuses, with its reason; `status` is 0 where it does not answer.
export class Refusal extends Error {
  constructor(status, message, hint) {
    super(message);
    this.status = status;
    this.hint = hint;
  }
}

export function takeToken() {
  const found = /^#token=([\w-]+)$/.exec(location.hash);
  if (!found) return;
  localStorage.setItem(KEY, found[1]);
  history.replaceState(null, '', `${location.pathname}#/sweeps`);
}

async function ask(path, options = {}) {
  const headers = { 'X-Binsweep-Token': localStorage.getItem(KEY) ?? '', ...options.headers };
  let answer;
  try {
    answer = await fetch(path, { ...options, headers, cache: 'no-store' });
  } catch {
    throw new Refusal(
      0,
      'The server does not answer.',
      '`binsweep ui` starts it again, and prints a new link',
    );
  }
  const body = await answer.json().catch(() => ({ message: answer.statusText, hint: '' }));
  if (!answer.ok) throw new Refusal(answer.status, body.message, body.hint);
  if (body?.refused !== undefined) throw new Refusal(answer.status, body.refused, body.hint);
  return body;
}

export const get = path => ask(path);

export const post = (path, body) =>
  ask(path, { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(body) });
