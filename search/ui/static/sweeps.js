// All sweeps of the home, and those of the cluster.

import { get } from '/static/api.js';
import { button } from '/static/actions.js';
import { clock, duration, h, metric, path, pill, plural, replace, section } from '/static/dom.js';
import { Table } from '/static/table.js';

export function open(root) {
  const chosen = new Set();
  const compare = button(
    'Compare',
    () => {
      location.hash = `#/compare/${path(...chosen)}`;
    },
    { disabled: true },
  );
  const count = h('p', { class: 'muted' }),
    broken = h('div', {}),
    cluster = h('div', {}),
    first = h('div', {});
  const table = new Table({
    label: 'Sweeps',
    rows: 20,
    empty: 'no sweep yet',
    sort: { column: 7, up: false },
    open: row => {
      location.hash = `#/sweep/${path(row.id)}`;
    },
    columns: [
      { name: 'sweep', left: true, text: row => row.id },
      { name: 'state', left: true, state: true, text: row => (row.paused_by ? 'paused' : row.status) },
      { name: 'best', text: row => metric(row.metric, row.best), value: row => row.best },
      { name: 'metric', left: true, text: row => `${row.metric} ${row.goal === 'maximize' ? '↑' : '↓'}` },
      { name: 'trials', text: row => String(row.trials), value: row => row.trials },
      { name: 'time', text: row => duration(row.seconds), value: row => row.seconds },
      {
        name: 'left',
        text: row =>
          row.status === 'running' && row.seconds_left !== null ? duration(row.seconds_left) : '',
        value: row => row.seconds_left ?? null,
      },
      { name: 'started', text: row => clock(row.begun), value: row => row.begun },
      { name: 'ended by', left: true, text: row => row.ended_by },
    ],
  });
  const pick = h('select', { multiple: false, 'aria-label': 'Add a sweep to the comparison' });
  const picked = h('span', { class: 'picked' });
  pick.addEventListener('change', () => {
    if (pick.value) chosen.add(pick.value);
    pick.value = '';
    drawPicked();
  });
  function drawPicked() {
    replace(
      picked,
      [...chosen].map(name =>
        button(
          `${name} ×`,
          () => {
            chosen.delete(name);
            drawPicked();
          },
          { kind: 'chip', 'aria-label': `Leave out ${name}` },
        ),
      ),
    );
    compare.disabled = chosen.size < 2;
  }
  const filter = h('input', {
    type: 'search',
    placeholder: 'Filter  ( / )',
    'aria-label': 'Filter the sweeps',
    oninput: () => table.filter(filter.value),
  });
  root.append(
    h(
      'div',
      { class: 'title' },
      h('div', {}, h('h1', {}, 'Sweeps'), count),
      h('div', { class: 'buttons' }, filter),
    ),
    first,
    table.element,
    h('div', { class: 'compare-bar' }, pick, picked, compare),
    broken,
    cluster,
  );
  let told = '',
    home = null,
    asked = 0;

  async function poll() {
    home ??= await get('/api/session');
    const sweeps = await get('/api/sweeps'),
      text = JSON.stringify(sweeps);
    if (text !== told) {
      told = text;
      const good = sweeps.filter(one => !one.error),
        bad = sweeps.filter(one => one.error);
      table.set(good.map(one => ({ ...one, number: one.id })));
      count.textContent = `${plural(good.length, 'sweep')} in ${home.home}`;
      first.replaceChildren();
      if (!sweeps.length)
        replace(
          first,
          h(
            'p',
            { class: 'empty' },
            'Start one with ',
            h('code', {}, 'binsweep sweep SPEC'),
            ': it appears here with its first trial.',
          ),
        );
      replace(
        pick,
        h('option', { value: '' }, 'Compare with …'),
        good.map(one => h('option', { value: one.id }, one.id)),
      );
      pick.hidden = compare.hidden = good.length < 2;
      replace(
        broken,
        bad.length
          ? section(
              'Cannot be shown',
              h(
                'ul',
                {},
                bad.map(one => h('li', {}, h('b', {}, one.id), ': ', one.error)),
              ),
            )
          : '',
      );
    }
    if (home.cluster && Date.now() - asked > 10000) {
      asked = Date.now();
      get('/api/cluster').then(
        jobs => drawCluster(jobs),
        error => replace(cluster, section('On the cluster', h('p', { class: 'bad' }, error.message))),
      );
    }
  }

  function drawCluster(jobs) {
    replace(
      cluster,
      section(
        'On the cluster',
        jobs.length
          ? h(
              'table',
              {},
              h(
                'tbody',
                {},
                jobs.map(job =>
                  h(
                    'tr',
                    {},
                    h('td', { class: 'left' }, h('a', { href: `#/cluster/${path(job.name)}` }, job.name)),
                    h('td', { class: 'left' }, pill(job.state)),
                    h('td', {}, duration(job.seconds)),
                    h('td', { class: 'left' }, job.message),
                  ),
                ),
              ),
            )
          : h('p', { class: 'muted' }, 'none was submitted'),
      ),
    );
  }
  return { poll };
}
