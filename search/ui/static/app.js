// Routes, and the one timer that keeps the page current while somebody looks at it.

import { get, takeToken } from '/static/api.js';
import { h, replace, say } from '/static/dom.js';

const PAGES = {
  sweeps: () => import('/static/sweeps.js'),
  sweep: () => import('/static/sweep.js'),
  trial: () => import('/static/trial.js'),
  compare: () => import('/static/compare.js'),
  models: () => import('/static/models.js'),
  cluster: () => import('/static/cluster.js'),
};
const POLL_MS = 900,
  MORE_MS = 300,
  MAX_POLL_MS = 5000;
const main = document.getElementById('main'),
  connection = document.getElementById('connection');
let view = null,
  shown = 0,
  busy = false,
  timer = 0;

function route() {
  const [address, query = ''] = location.hash.replace(/^#\/?/, '').split('?');
  const parts = address.split('/').filter(Boolean).map(decodeURIComponent);
  if (parts[0] === 'sweep' && parts[2] === 'trial')
    return { page: 'trial', sweep: parts[1], number: Number(parts[3]) };
  if (parts[0] === 'sweep') return { page: 'sweep', sweep: parts[1] };
  if (parts[0] === 'cluster') return { page: 'cluster', name: parts[1] };
  if (parts[0] === 'compare') return { page: 'compare', sweeps: parts.slice(1) };
  return { page: parts[0] in PAGES ? parts[0] : 'sweeps', query };
}

async function show() {
  const mine = ++shown,
    where = route();
  view?.leave?.();
  view = null;
  for (const link of document.querySelectorAll('[data-page]')) {
    const here =
      link.dataset.page === where.page ||
      (link.dataset.page === 'sweeps' && ['sweep', 'trial', 'cluster'].includes(where.page));
    if (here) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
  }
  const { open } = await PAGES[where.page]();
  if (mine !== shown) return;
  scrollTo(0, 0);
  main.replaceChildren();
  view = open(main, where);
  main.focus({ preventScroll: true });
  await poll();
}

// One question at a time; the next one follows after a second, or later where an answer takes long.
async function poll() {
  if (busy || view === null) return;
  busy = true;
  clearTimeout(timer);
  const mine = view,
    began = performance.now();
  let wait = POLL_MS;
  try {
    // A view that has not got everything yet asks again soon.
    if ((await mine.poll()) === 'more') wait = MORE_MS;
    say(connection, '');
  } catch (error) {
    if (mine === view) trouble(error);
  } finally {
    busy = false;
  }
  wait = mine === view ? Math.min(MAX_POLL_MS, Math.max(wait, 5 * (performance.now() - began) - POLL_MS)) : 0;
  timer = setTimeout(() => {
    if (!document.hidden) poll();
  }, wait);
}

function trouble(error) {
  if (error.status === 401) {
    view = null;
    replace(
      main,
      h(
        'div',
        { class: 'empty' },
        h('h1', {}, 'This page needs its link'),
        h(
          'p',
          {},
          'Open the link that `binsweep ui` printed: it holds the token with which this browser may look and act.',
        ),
      ),
    );
    return;
  }
  say(connection, error.status === undefined ? `The page failed: ${error.message}` : error.message);
  if (error.status === undefined) console.error(error);
  if (!main.querySelector('h1') && error.status) {
    replace(
      main,
      h(
        'div',
        { class: 'empty' },
        h('h1', {}, error.message),
        h('p', {}, error.hint ?? ''),
        h('p', {}, h('a', { href: '#/sweeps' }, 'All sweeps')),
      ),
    );
  }
}

async function session() {
  try {
    const told = await get('/api/session'),
      link = document.getElementById('mlflow');
    link.hidden = !told.mlflow;
    if (told.mlflow) link.href = told.mlflow;
    document.title = 'binsweep';
    if (!told.mlflow && !told.mlflow_problem) setTimeout(session, 2000);
  } catch {
    /* the next poll says it */
  }
}

takeToken();
addEventListener('hashchange', () => {
  takeToken();
  show();
});
addEventListener('keydown', event => {
  if (
    event.key !== '/' ||
    /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) ||
    document.querySelector('dialog[open]')
  )
    return;
  const filter = main.querySelector('input[type=search]');
  if (filter) {
    event.preventDefault();
    filter.focus();
  }
});
document.addEventListener('visibilitychange', () => {
  if (!document.hidden) poll();
});
show();
session();
