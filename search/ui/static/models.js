// Registered models: which version is champion, what was decided about each, and the way back.

import { get } from '/static/api.js';
import { button, rollBack } from '/static/actions.js';
import { clock, h, path, pill, replace } from '/static/dom.js';

export function open(root) {
  const body = h('div', {}, h('p', { class: 'muted' }, 'Asking MLflow …'));
  root.append(h('div', { class: 'title' }, h('h1', {}, 'Models')), body);
  let told = '',
    asked = 0;

  async function poll() {
    if (Date.now() - asked < 3000) return;
    const found = await get('/api/models'),
      text = JSON.stringify(found);
    asked = Date.now();
    if (text === told) return;
    told = text;
    if (found.problem) replace(body, h('p', { class: 'note' }, `${found.problem}.`));
    else if (!found.models.length)
      replace(
        body,
        h(
          'p',
          { class: 'empty' },
          'No model is registered. ',
          h('b', {}, 'Promote'),
          ' on the page of a sweep tests its best one, and makes it champion if it is better.',
        ),
      );
    else replace(body, found.models.map(model));
  }

  function model({ name, aliases, versions }) {
    const champion = versions.find(one => one.version === aliases.champion),
      before = champion?.tags['champion.before'];
    return h(
      'section',
      {},
      h(
        'div',
        { class: 'title' },
        h(
          'div',
          {},
          h('h2', {}, name),
          h(
            'p',
            { class: 'muted' },
            champion
              ? [
                  'champion: version ',
                  champion.version,
                  champion.tags.sweep ? [' of ', sweep(champion.tags.sweep)] : '',
                  '; ',
                  h('code', {}, `binsweep serve ${name}`),
                ]
              : 'no champion',
          ),
        ),
        h(
          'div',
          { class: 'buttons' },
          button(
            'Roll back',
            () =>
              rollBack(name, champion.version, before, () => {
                asked = 0;
                told = '';
              }),
            {
              disabled: !before,
              title: before
                ? `Version ${before} becomes champion again`
                : 'there is no champion before this one',
            },
          ),
        ),
      ),
      h(
        'div',
        { class: 'scroll-x' },
        h(
          'table',
          { class: 'plainly versions' },
          h(
            'thead',
            {},
            h(
              'tr',
              {},
              ['version', 'decision', 'why', 'scores on the test split', 'sweep', 'when'].map(text =>
                h('th', { class: 'left' }, text),
              ),
            ),
          ),
          h('tbody', {}, versions.map(version)),
        ),
      ),
    );
  }

  const sweep = id => h('a', { href: `#/sweep/${path(id)}` }, id);

  function version({ version: n, aliases, tags, created }) {
    const scores = Object.entries(tags).filter(
      ([name, value]) =>
        name.startsWith('test.') &&
        value !== '' &&
        !['test.split', 'test.decisions'].includes(name) &&
        !Number.isNaN(Number(value)),
    );
    const rules = Object.entries(tags).filter(([name]) => name.startsWith('gate.'));
    return h(
      'tr',
      {},
      h('td', {}, h('b', {}, n), ' ', aliases.map(pill)),
      h('td', {}, tags.decision ?? '-'),
      h(
        'td',
        { class: 'values' },
        tags['decision.reason'] ?? '',
        tags['decision.warning'] ? h('p', { class: 'bad' }, tags['decision.warning']) : null,
        tags['champion.again'] ? h('p', {}, `champion again: ${tags['champion.again']}`) : null,
        rules.length
          ? h(
              'details',
              {},
              h('summary', {}, `${rules.length} rules`),
              h(
                'ul',
                {},
                rules.map(([name, text]) =>
                  h(
                    'li',
                    { class: text.startsWith('failed') ? 'bad' : '' },
                    name.slice(5).replaceAll('_', ' '),
                    ': ',
                    text,
                  ),
                ),
              ),
            )
          : null,
      ),
      h(
        'td',
        { class: 'values' },
        scores.map(([name, value]) => `${name.slice(5).replaceAll('_', ' ')} ${Number(value)}`).join(', '),
      ),
      h('td', {}, tags.sweep ? sweep(tags.sweep) : ''),
      h(
        'td',
        {},
        tags['decision.at'] ? new Date(tags['decision.at']).toLocaleString() : clock(created),
        h('br'),
        h('small', {}, tags['decision.by'] ?? ''),
      ),
    );
  }
  return { poll };
}
