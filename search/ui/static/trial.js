// One trial: what it is, its figures, and why it was tried, paused and ended.

import { get } from '/static/api.js';
import { button, enqueue, pinOrUnpin, stopTrial } from '/static/actions.js';
import { Chart, axisAround, isPercent } from '/static/charts.js';
import {
  clock,
  duration,
  facts as factList,
  h,
  metric,
  number,
  path,
  pill,
  redraw,
  replace,
  say,
  section,
} from '/static/dom.js';

const PICTURE = /\.(png|jpe?g|gif|webp|svg)$/i,
  OPEN = ['running', 'paused', 'waiting', 'interrupted'];

export function open(root, { sweep, number: n }) {
  let shown = '',
    facts = null,
    version = '',
    pictures = null,
    found = null;
  const done = () => {
    version = '';
  };
  const state = h('span', {}),
    sub = h('p', { class: 'muted' }),
    why = h('div', {}),
    values = h('div', {}),
    figures = h('div', { class: 'figures' }),
    files = h('div', {}),
    decisions = h('div', { class: 'log' }),
    warnings = h('div', {}),
    epochs = h('div', { class: 'scroll-x tall', tabIndex: 0, role: 'group', 'aria-label': 'Epochs' });
  const buttons = {
    pin: button('Pin', () => pinOrUnpin(facts, n, done)),
    stop: button('Stop', () => stopTrial(facts, n, done)),
    enqueue: button('Enqueue a variant', () => enqueue(facts, found.params, n, done)),
  };
  const links = h('span', { class: 'links' });
  const objective = new Chart({ label: 'The objective by epoch', height: 260 }),
    other = new Chart({ label: 'Another metric by epoch', height: 260 });
  const which = h('select', { 'aria-label': 'Metric', onchange: () => drawOther() });
  const figurePart = section('Figures', figures);
  root.append(
    h(
      'p',
      { class: 'crumbs' },
      h('a', { href: '#/sweeps' }, 'Sweeps'),
      ' / ',
      h('a', { href: `#/sweep/${path(sweep)}` }, sweep),
    ),
    h(
      'div',
      { class: 'title' },
      h('div', {}, h('h1', {}, `Trial ${n} `, state), sub),
      h('div', { class: 'buttons' }, Object.values(buttons), links),
    ),
    h('div', { class: 'pair' }, section('Why', why), section('Values', values)),
    h(
      'div',
      { class: 'pair' },
      section('Objective', objective.element),
      h('section', {}, h('div', { class: 'title' }, h('h2', {}, 'Other metrics'), which), other.element),
    ),
    figurePart,
    h('div', { class: 'pair' }, section('Decisions', decisions), section('Warnings', warnings)),
    section('Epochs', epochs),
    section('Files', files),
  );

  async function poll() {
    const now = await get(`/api/sweeps/${path(sweep)}?since=${encodeURIComponent(version)}`);
    if (now.same && found) return undefined;
    [version, facts] = [now.version, now.sweep ?? facts];
    if (now.share < 1) return 'more';
    found = await get(`/api/sweeps/${path(sweep)}/trials/${n}`);
    const isOpen = OPEN.includes(found.state) && facts.status !== 'finished';
    buttons.pin.disabled = !isOpen;
    say(buttons.pin, facts.pinned.includes(n) ? 'Unpin' : 'Pin');
    buttons.stop.disabled = !isOpen || facts.stopping.includes(n);
    buttons.enqueue.disabled = facts.status === 'finished';
    const text = JSON.stringify(found);
    if (text !== shown) {
      shown = text;
      draw();
    }
    return undefined;
  }

  function draw() {
    replace(state, pill(found.state));
    const best = found.epoch
      ? `${found.metric} ${metric(found.metric, found.value)} at epoch ${found.epoch}`
      : 'no result yet';
    say(
      sub,
      `${best}${found.place ? `, place ${found.place}` : ''}; ${found.epochs_done} of ${found.epochs} epochs, ${duration(found.seconds)} with a worker${found.level ? `, ${found.level}` : ''}`,
    );
    redraw(links, found.mlflow, () =>
      h(
        'a',
        {
          class: 'button',
          href: found.mlflow,
          target: '_blank',
          rel: 'noopener',
          'aria-label': 'This trial in MLflow',
        },
        'MLflow',
      ),
    );
    replace(
      why,
      factList([
        ['tried because', found.suggested_because || '-'],
        found.ended_because ? [`${found.state} because`, found.ended_because] : null,
      ]),
    );
    redraw(values, [found.params, found.spec], () => [
      factList(Object.entries(found.params).map(([name, value]) => [name, String(value)])),
      h(
        'details',
        {},
        h('summary', {}, 'What is fixed'),
        factList(
          Object.entries(found.spec).map(([name, value]) => [
            name,
            typeof value === 'object' ? JSON.stringify(value) : String(value),
          ]),
        ),
      ),
    ]);
    const rows = Object.entries(found.metrics).map(([epoch, metrics]) => [Number(epoch), metrics]);
    chart(objective, found.metric, rows);
    const names = [...new Set(rows.flatMap(row => Object.keys(row[1])))].filter(
      name => name !== found.metric,
    );
    if (which.options.length !== names.length) {
      const chosen = which.value || ['val_loss', 'train_loss'].find(name => names.includes(name)) || names[0];
      replace(
        which,
        names.map(name => h('option', { selected: name === chosen }, name)),
      );
    }
    which.hidden = !names.length;
    drawOther();
    drawEpochs(rows, names);
    drawFiles();
    replace(
      decisions,
      found.decisions.length
        ? found.decisions.map(one =>
            h(
              'div',
              {},
              h('time', {}, clock(one.time)),
              h(
                'span',
                {},
                one.what === 'request'
                  ? `${one.who}: ${one.asked}`
                  : `${one.what}${one.epoch ? ` at epoch ${one.epoch}` : ''}`,
              ),
              h('span', { class: 'muted' }, one.reason),
            ),
          )
        : h('p', { class: 'muted' }, 'none yet'),
    );
    const rules = Object.entries(found.warnings);
    replace(
      warnings,
      rules.length
        ? factList(rules.map(([name, text]) => [name.split('.').pop().replaceAll('_', ' '), text]))
        : h('p', { class: 'muted' }, 'No rule had anything to say.'),
    );
  }

  function chart(one, name, rows) {
    const line = rows.filter(row => name in row[1]).map(([epoch, metrics]) => [epoch, metrics[name]]);
    const last = Math.max(found.epochs_done, 1);
    one.told = epoch => `epoch ${epoch}: ${name} ${metric(name, found.metrics[epoch]?.[name])}`;
    one.set({
      x: { low: 0.5, high: last + 0.5, whole: true },
      y: axisAround(
        line.map(point => point[1]),
        isPercent(name),
      ),
      names: ['epoch', name],
      marks: [
        { line, colour: 'blue', width: 2 },
        ...line
          .filter(point => point[1] !== null)
          .map(point => ({
            n: point[0],
            dot: point,
            colour: name === found.metric && point[0] === found.epoch ? 'orange' : 'blue',
            radius: name === found.metric && point[0] === found.epoch ? 5 : 3,
          })),
      ],
    });
  }

  function drawOther() {
    if (found && which.value)
      chart(
        other,
        which.value,
        Object.entries(found.metrics).map(([epoch, metrics]) => [Number(epoch), metrics]),
      );
  }

  function drawEpochs(rows, names) {
    const shownNames = [found.metric, ...names.filter(name => !name.includes('/'))].slice(0, 10);
    replace(
      epochs,
      rows.length
        ? h(
            'table',
            { class: 'grid' },
            h(
              'thead',
              {},
              h(
                'tr',
                {},
                h('th', {}, 'epoch'),
                shownNames.map(name => h('th', {}, name)),
              ),
            ),
            h(
              'tbody',
              {},
              rows.map(([epoch, metrics]) =>
                h(
                  'tr',
                  { class: epoch === found.epoch ? 'active' : '' },
                  h('td', {}, String(epoch)),
                  shownNames.map(name => h('td', {}, number(metrics[name]))),
                ),
              ),
            ),
          )
        : h('p', { class: 'muted' }, 'no epoch yet'),
    );
  }

  function drawFiles() {
    const key = found.files.map(file => file.url).join();
    if (key !== pictures) {
      pictures = key;
      const some = found.files
        .filter(file => PICTURE.test(file.name))
        .sort((a, b) => b.name.includes('mistake') - a.name.includes('mistake'));
      replace(
        figures,
        some.map(file =>
          h(
            'figure',
            {},
            h(
              'a',
              { href: file.url, target: '_blank', rel: 'noopener' },
              h('img', { src: file.url, alt: file.name, loading: 'lazy' }),
            ),
            h('figcaption', {}, file.name),
          ),
        ),
      );
      figurePart.hidden = !some.length;
      replace(
        files,
        h('p', { class: 'muted wrap' }, found.folder),
        h(
          'ul',
          { class: 'files' },
          found.files.map(file =>
            h('li', {}, h('a', { href: file.url, target: '_blank', rel: 'noopener' }, file.name)),
          ),
        ),
        found.checkpoint ? h('p', { class: 'wrap' }, 'checkpoint: ', found.checkpoint) : null,
      );
    }
  }
  return { poll };
}
