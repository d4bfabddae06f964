// What the buttons do: each opens a dialog that first shows what would happen, and then does it.

import { get, post } from '/static/api.js';
import { clock, duration, h, param, path, replace, toast } from '/static/dom.js';

export function button(text, onclick, { kind = '', ...more } = {}) {
  return h('button', { type: 'button', class: kind, onclick, ...more }, text);
}

// A dialog with a title, closed by Escape or its button; the focus returns to what opened it.
export function dialog(title, ...children) {
  const before = document.activeElement;
  const box = h(
    'dialog',
    { 'aria-label': title },
    h(
      'div',
      { class: 'head' },
      h('h2', {}, title),
      button('×', () => box.close(), { kind: 'plain', 'aria-label': 'Close' }),
    ),
    children,
  );
  box.addEventListener('close', () => {
    box.remove();
    before?.focus?.();
  });
  document.body.append(box);
  box.showModal();
  return box;
}

export function refusal(error) {
  return h(
    'div',
    { class: 'answer bad', role: 'alert' },
    h('p', { class: 'pre' }, error.message),
    error.hint ? h('p', { class: 'muted' }, error.hint) : null,
  );
}

// fields: an element with inputs; read(): the values that the request has, or throws an Error with the mistake.
export function askSweep(
  sweep,
  { title, kind, trial = null, fields = null, read = () => ({}), verb, done = () => {} },
) {
  const answer = h('div', { 'aria-live': 'polite' });
  let checked = null;
  const act = h('button', { class: 'primary', type: 'submit' }, 'Check');
  const form = h(
    'form',
    {
      onsubmit: event => {
        event.preventDefault();
        submit();
      },
    },
    fields,
    answer,
    h(
      'div',
      { class: 'buttons' },
      act,
      button('Cancel', () => box.close()),
    ),
  );
  const box = dialog(title, form);

  async function submit() {
    const values = read(),
      wanted = JSON.stringify(values),
      sure = checked === wanted;
    act.disabled = true;
    try {
      const told = await post(`/api/sweeps/${path(sweep)}/ask`, { kind, trial, values, check: !sure });
      if (sure) {
        box.close();
        toast(told.answer);
        done();
        return;
      }
      checked = wanted;
      replace(
        answer,
        h('div', { class: 'answer' }, h('span', { class: 'muted' }, 'What would happen: '), told.answer),
      );
      act.textContent = verb;
      act.className = kind === 'stop-trial' ? 'danger' : 'primary';
    } catch (error) {
      replace(answer, refusal(error));
    } finally {
      act.disabled = false;
      if (box.open && !fields) act.focus();
    }
  }

  fields?.addEventListener('input', () => {
    checked = null;
    act.textContent = 'Check';
    act.className = 'primary';
    replace(answer);
  });
  if (fields === null) submit();
}

export const pause = (facts, done) =>
  askSweep(facts.id, { title: `Pause ${facts.id}`, kind: 'pause', verb: 'Pause', done });
export const resume = (facts, done) =>
  askSweep(facts.id, { title: `Resume ${facts.id}`, kind: 'resume', verb: 'Resume', done });
export const stopTrial = (facts, trial, done) =>
  askSweep(facts.id, {
    title: `Stop trial ${trial}`,
    kind: 'stop-trial',
    trial,
    verb: 'Stop the trial',
    done,
  });
const pin = (facts, trial, done) =>
  askSweep(facts.id, { title: `Pin trial ${trial}`, kind: 'pin', trial, verb: 'Pin the trial', done });
const unpin = (facts, trial, done) =>
  askSweep(facts.id, {
    title: `Unpin trial ${trial}`,
    kind: 'unpin',
    trial,
    verb: 'Let the strategy decide',
    done,
  });
// Pins a trial, or takes its pin away.
export const pinOrUnpin = (facts, trial, done) =>
  (facts.pinned.includes(trial) ? unpin : pin)(facts, trial, done);

const NONE = [];

function input(name, value, more = {}) {
  return h('input', { type: 'text', name, value, autocomplete: 'off', spellcheck: false, ...more });
}

// A configuration: a field for each searched value, those of `like`, or of the best trial, to begin with.
export function enqueue(facts, begin, like, done) {
  const rows = new Map();
  const fields = h(
    'div',
    { class: 'fields' },
    facts.space.map(one => {
      const value = begin?.[one.name];
      const field = one.choices
        ? h('select', { name: one.name }, [
            value === undefined ? h('option', { value: '' }, '') : null,
            one.choices.map(choice =>
              h('option', { value: String(choice), selected: choice === value }, String(choice)),
            ),
          ])
        : input(one.name, value === undefined ? '' : String(value), {
            inputMode: 'decimal',
            placeholder: one.text,
          });
      const row = h('label', {}, h('span', {}, one.name), field, h('small', {}, one.text));
      rows.set(one.name, { one, field, row });
      return row;
    }),
  );
  const active = one =>
    one.when.every(
      ([parent, allowed]) =>
        rows.has(parent) &&
        !rows.get(parent).row.hidden &&
        allowed.map(String).includes(rows.get(parent).field.value),
    );
  const fit = () => {
    for (const { one, row } of rows.values()) row.hidden = !active(one);
  };
  fields.addEventListener('input', fit);
  fit();
  const read = () =>
    Object.fromEntries(
      [...rows.values()]
        .filter(({ row, field }) => !row.hidden && field.value.trim() !== '')
        .map(({ one, field }) => [one.name, field.value.trim()])
        .filter(([name, text]) => like === null || text !== String(begin[name])),
    );
  const title =
    like === null ? `Enqueue a configuration in ${facts.id}` : `Enqueue a variant of trial ${like}`;
  askSweep(facts.id, { title, kind: 'enqueue', trial: like, fields, read, verb: 'Enqueue', done });
}

export function narrow(facts, done) {
  const readers = [];
  const fields = h(
    'div',
    { class: 'fields' },
    facts.space.map(one => {
      if (one.choices) {
        const kept = new Set((one.kept ?? one.choices).map(String));
        const boxes = one.choices.map(choice =>
          h(
            'label',
            { class: 'inline' },
            h('input', {
              type: 'checkbox',
              value: String(choice),
              checked: kept.has(String(choice)),
              disabled: !kept.has(String(choice)),
            }),
            String(choice),
          ),
        );
        readers.push(() => {
          const ticked = boxes
            .map(box => box.firstChild)
            .filter(box => box.checked)
            .map(box => box.value);
          return ticked.length === kept.size ? NONE : [[one.name, ticked]];
        });
        return h('fieldset', {}, h('legend', {}, one.name), boxes);
      }
      const ends = [one.now_low, one.now_high].map(String);
      const low = input(`${one.name}-low`, ends[0], { 'aria-label': `${one.name} from` }),
        high = input(`${one.name}-high`, ends[1], { 'aria-label': `${one.name} to` });
      readers.push(() =>
        low.value.trim() === ends[0] && high.value.trim() === ends[1]
          ? NONE
          : [[one.name, [low.value.trim(), high.value.trim()]]],
      );
      return h('fieldset', {}, h('legend', {}, one.name), h('span', { class: 'ends' }, low, ' to ', high));
    }),
  );
  askSweep(facts.id, {
    title: `Narrow the space of ${facts.id}`,
    kind: 'narrow',
    fields,
    read: () => Object.fromEntries(readers.flatMap(reader => reader())),
    verb: 'Narrow',
    done,
  });
}

const LIMITS = [
  'minutes',
  'trials',
  'epochs',
  'gpu_hours',
  'money',
  'no_improvement',
  'target',
  'trial_minutes',
];

export function budget(facts, done) {
  const inputs = LIMITS.map(name => [
    name,
    input(name, '', {
      placeholder: facts.budget[name] === undefined ? 'no limit' : String(facts.budget[name]),
    }),
  ]);
  const fields = h(
    'div',
    { class: 'fields' },
    h('p', { class: 'muted' }, 'A number replaces a limit; +30 or -30 changes it.'),
    inputs.map(([name, field]) => h('label', {}, h('span', {}, name), field)),
  );
  const read = () =>
    Object.fromEntries(inputs.map(([name, field]) => [name, field.value.trim()]).filter(pair => pair[1]));
  askSweep(facts.id, {
    title: `Change the budget of ${facts.id}`,
    kind: 'budget',
    fields,
    read,
    verb: 'Change',
    done,
  });
}

// Promotion: the dry run first; then, with its judgement in sight, the promotion itself.
export function promote(facts) {
  const state = h('p', { class: 'muted', 'aria-live': 'polite' }),
    output = h('pre', { class: 'output', tabIndex: 0, 'aria-label': 'Output' });
  const trouble = h('div', {});
  const approve = h('input', { type: 'checkbox', name: 'approve' });
  const dry = button('Dry run', () => start(true), { kind: 'primary' });
  const real = button('Promote', () => start(false), { kind: 'primary', hidden: true });
  const interrupt = button('Interrupt', () => act(post(`${base}/interrupt`, {})), { hidden: true });
  const base = `/api/sweeps/${path(facts.id)}/promotion`;
  const box = dialog(
    `Promote the best model of ${facts.id}`,
    h(
      'p',
      { class: 'muted' },
      'The finalists are trained again with fresh seeds and the best of them is judged on the test split. This takes minutes, and goes on when this page is closed. A dry run trains them too, and registers nothing.',
    ),
    facts.approval
      ? h('label', { class: 'inline' }, approve, 'I give the approval that register.gate.approval requires')
      : null,
    trouble,
    state,
    output,
    h(
      'div',
      { class: 'buttons' },
      dry,
      real,
      interrupt,
      button('Close', () => box.close()),
    ),
  );

  const start = dry_run => act(post(base, { dry_run, approved: approve.checked }));
  async function act(asked) {
    try {
      show(await asked);
      replace(trouble);
    } catch (error) {
      replace(trouble, refusal(error));
    }
  }

  function show(told) {
    const runs = told !== null && told.code === null;
    dry.disabled = real.disabled = runs;
    interrupt.hidden = !runs;
    real.hidden = !told?.may_follow;
    dry.className = real.hidden ? 'primary' : '';
    output.hidden = told === null;
    if (told === null) {
      state.textContent = 'Nothing was run yet.';
      return;
    }
    const what = told.dry_run ? 'Dry run' : 'Promotion',
      took = duration((told.ended || Date.now() / 1000) - told.began);
    state.textContent = runs
      ? `${what} runs since ${clock(told.began)} (${took})`
      : `${what} ${told.interrupted ? 'was interrupted' : told.code === 0 ? 'ended' : `failed (exit code ${told.code})`} after ${took}`;
    const text = told.lines.join('\n');
    if (output.textContent !== text) {
      output.textContent = text;
      output.scrollTop = output.scrollHeight;
    }
  }

  async function follow() {
    if (!box.open) return;
    try {
      show(await get(base));
    } catch (error) {
      replace(trouble, refusal(error));
    }
    setTimeout(follow, 1000);
  }
  follow();
}

export function rollBack(model, champion, before, done) {
  const reason = input('reason', '', { required: true, placeholder: 'stored with both versions' }),
    answer = h('div', {});
  const act = h('button', { class: 'danger', type: 'submit' }, `Roll back to version ${before}`);
  const form = h(
    'form',
    { onsubmit: submit },
    h(
      'p',
      {},
      `Version ${before} becomes champion again, instead of version ${champion}. Servers with --follow change to it.`,
    ),
    h('div', { class: 'fields' }, h('label', {}, h('span', {}, 'reason'), reason)),
    answer,
    h(
      'div',
      { class: 'buttons' },
      act,
      button('Cancel', () => box.close()),
    ),
  );
  const box = dialog(`Roll back ${model}`, form);
  async function submit(event) {
    event.preventDefault();
    act.disabled = true;
    try {
      toast((await post(`/api/models/${path(model)}/rollback`, { reason: reason.value })).answer);
      box.close();
      done();
    } catch (error) {
      replace(answer, refusal(error));
      act.disabled = false;
    }
  }
}

export { param };
