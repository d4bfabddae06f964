// What is told of one sweep in words: warnings, requests and the log of decisions.

import { clock, h, path, plural, redraw, replace, section } from '/static/dom.js';

// `view` is what sweep.js knows of its sweep.
export function notesOf(view) {
  const warnings = h('div', {}),
    requests = h('div', {}),
    log = h('div', { class: 'log', tabIndex: 0, role: 'log', 'aria-label': 'Decisions' });
  let logged = '';

  function draw() {
    const { facts, trials } = view;
    const rules = Object.entries(facts.warnings),
      failed = [...trials.values()].filter(one => one.state === 'failed').slice(0, 20);
    redraw(warnings, [rules, failed.map(one => one.number)], () => [
      rules.length
        ? h(
            'table',
            { class: 'plainly' },
            h(
              'tbody',
              {},
              rules.map(([name, many]) => {
                const rule = name.split('.').pop(),
                  some = [...trials.values()].filter(one => one.warnings.includes(rule)).slice(0, 12);
                return h(
                  'tr',
                  {},
                  h('td', {}, rule.replaceAll('_', ' '), h('small', {}, ` ${name.split('.')[0]}`)),
                  h('td', {}, plural(many, 'trial')),
                  h(
                    'td',
                    { class: 'values' },
                    some.map((one, index) => [
                      index ? ', ' : '',
                      h('a', { href: `#/sweep/${path(view.sweep)}/trial/${one.number}` }, String(one.number)),
                    ]),
                  ),
                );
              }),
            ),
          )
        : h('p', { class: 'muted' }, 'No rule had anything to say.'),
      failures(failed),
    ]);
    redraw(requests, facts.requests, () =>
      facts.requests.length
        ? h(
            'ul',
            { class: 'requests' },
            [...facts.requests]
              .reverse()
              .slice(0, 30)
              .map(one =>
                h(
                  'li',
                  {},
                  h('b', {}, one.asked),
                  ' ',
                  h('small', {}, `${one.who}, ${clock(one.when)}`),
                  h('br'),
                  h(
                    'span',
                    { class: one.status === 'refused' ? 'bad' : one.status === 'kept' ? 'muted' : '' },
                    one.status === 'refused' ? 'refused: ' : '',
                    one.answer,
                  ),
                ),
              ),
          )
        : h('p', { class: 'muted' }, 'Nothing yet.'),
    );
  }

  function failures(failed) {
    return failed.length
      ? [
          h('h3', {}, 'Failures'),
          h(
            'ul',
            {},
            failed.map(one =>
              h(
                'li',
                {},
                h('a', { href: `#/sweep/${path(view.sweep)}/trial/${one.number}` }, `trial ${one.number}`),
                ': ',
                one.reason,
              ),
            ),
          ),
        ]
      : null;
  }

  function drawLog(lines) {
    const key = `${lines.length} ${lines[0]?.time}`;
    if (key === logged) return;
    logged = key;
    replace(
      log,
      lines.length
        ? lines.map(line =>
            h(
              'div',
              {},
              h('time', {}, clock(line.time)),
              h(
                'span',
                {},
                line.what === 'request'
                  ? `${line.who}: ${line.asked}`
                  : `trial ${line.trial} ${line.what}${line.epoch ? ` at epoch ${line.epoch}` : ''}`,
              ),
              h('span', { class: 'muted' }, line.reason),
            ),
          )
        : h('p', { class: 'muted' }, 'no decision yet'),
    );
  }

  return {
    both: h(
      'div',
      { class: 'pair' },
      section('Warnings', warnings),
      section('What people asked for', requests),
    ),
    log: section('Log', log),
    draw,
    drawLog,
  };
}
