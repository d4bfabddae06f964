// Sweeps side by side.

import { get } from '/static/api.js';
import { Chart, GROUP_COLOURS, axisAround, isPercent } from '/static/charts.js';
import { button, refusal } from '/static/actions.js';
import { h, path, replace, section } from '/static/dom.js';

const AXES = {
  trials: 'trials begun',
  epochs: 'epochs',
  seconds: 'seconds',
  money: 'money',
  gpu_hours: 'GPU hours',
  cpu_hours: 'CPU hours',
};

export function open(root, { sweeps }) {
  let asked = false,
    all = null;
  const pick = h('select', {
    'aria-label': 'Add a sweep',
    onchange: () => {
      if (pick.value) location.hash = `#/compare/${path(...sweeps, pick.value)}`;
    },
  });
  const chips = h(
    'span',
    { class: 'picked' },
    sweeps.map(name =>
      button(
        `${name} ×`,
        () => {
          location.hash = `#/compare/${path(...sweeps.filter(one => one !== name))}`;
        },
        { kind: 'chip', 'aria-label': `Leave out ${name}` },
      ),
    ),
  );
  const body = h('div', {});
  root.append(
    h('div', { class: 'title' }, h('h1', {}, 'Compare')),
    h('div', { class: 'compare-bar' }, chips, pick),
    body,
  );

  async function poll() {
    if (all === null) {
      all = (await get('/api/sweeps')).filter(one => !one.error).map(one => one.id);
      replace(
        pick,
        h('option', { value: '' }, 'Add a sweep …'),
        all.filter(name => !sweeps.includes(name)).map(name => h('option', {}, name)),
      );
    }
    if (asked) return;
    asked = true;
    if (sweeps.length < 2) {
      replace(
        body,
        h(
          'p',
          { class: 'empty' },
          'Choose two sweeps of the same metric: they are compared at equal trials, epochs, time and cost.',
        ),
      );
      return;
    }
    replace(body, h('p', { class: 'muted' }, 'Reading …'));
    try {
      draw(await get(`/api/compare?${sweeps.map(name => `sweep=${encodeURIComponent(name)}`).join('&')}`));
    } catch (error) {
      replace(body, refusal(error));
    }
  }

  function draw(found) {
    const letters = found.groups.map(group => group.letter),
      percent = isPercent(found.metric);
    const table = (head, rows) =>
      h(
        'div',
        { class: 'scroll-x' },
        h(
          'table',
          { class: 'plainly' },
          h(
            'thead',
            {},
            h(
              'tr',
              {},
              head.map(text => h('th', { class: 'left' }, text)),
            ),
          ),
          h(
            'tbody',
            {},
            rows.map(row =>
              h(
                'tr',
                {},
                row.map(cell => h('td', {}, cell)),
              ),
            ),
          ),
        ),
      );
    const charts = found.axes.map(axis => {
      const one = new Chart({ label: `Best ${found.metric} by ${AXES[axis]}`, height: 240 });
      const courses = found.courses.flatMap((group, place) =>
        group.map(course => ({ course, colour: GROUP_COLOURS[place] })),
      );
      one.set({
        x: { low: 0, high: Math.max(1e-9, ...courses.map(({ course }) => course.amounts[axis].at(-1) ?? 0)) },
        y: axisAround(
          courses.flatMap(({ course }) => course.values),
          percent,
        ),
        names: [AXES[axis], found.metric],
        marks: courses.map(({ course, colour }) => ({
          line: course.values.map((value, index) => [course.amounts[axis][index], value]),
          steps: true,
          colour,
          width: 2,
        })),
      });
      return one.element;
    });
    replace(
      body,
      found.warnings.map(text => h('p', { class: 'note' }, text)),
      section(
        `Best ${found.metric}`,
        table(
          ['', 'sweeps', 'best', 'trials', 'epochs', 'time', 'cost'],
          found.groups.map((group, place) => [
            h('span', { class: `letter ${GROUP_COLOURS[place]}` }, group.letter),
            group.name,
            group.best,
            group.trials,
            group.epochs,
            group.time,
            group.cost,
          ]),
        ),
      ),
      h(
        'div',
        { class: 'pair' },
        charts.map(one => h('section', {}, one)),
      ),
      section(
        'At equal amounts',
        table(
          ['after', ...letters, ...letters.slice(1).map(letter => `${letter} better than A by`)],
          found.rows.map(row => [row.amount, ...row.means, ...row.gains.slice(1)]),
        ),
      ),
      section(
        'What the best trials have',
        table(
          ['', ...letters],
          found.parameters.map(one => [
            h('span', { class: one.moved ? 'strong' : '' }, one.name),
            ...one.cells.map(([best, searched]) => [best, h('small', {}, ` ${searched}`)]),
          ]),
        ),
      ),
      found.differences.length
        ? section(
            'What else their specs say differently',
            table(
              ['', ...letters],
              found.differences.map(([key, values]) => [key, ...values]),
            ),
          )
        : '',
    );
  }
  return { poll };
}
