// A submitted sweep: its state, the end of its log, and its commands.

import { get, post } from '/static/api.js';
import { button, refusal } from '/static/actions.js';
import { duration, h, path, pill, replace, say, toast } from '/static/dom.js';

export function open(root, { name }) {
  const state = h('p', {}),
    log = h('pre', { class: 'output', tabIndex: 0, 'aria-label': 'Log' }),
    answer = h('div', { 'aria-live': 'polite' });
  const kind = h(
    'select',
    { name: 'kind', 'aria-label': 'Command' },
    ['pause', 'resume', 'budget', 'enqueue', 'narrow', 'stop-trial', 'pin', 'unpin'].map(one =>
      h('option', {}, one),
    ),
  );
  const trial = h('input', {
    type: 'text',
    inputMode: 'numeric',
    placeholder: 'trial',
    'aria-label': 'Trial',
  });
  const values = h('input', { type: 'text', placeholder: 'name=value ...', 'aria-label': 'Values' });
  const form = h(
    'form',
    { class: 'row', onsubmit: submit },
    kind,
    trial,
    values,
    h('button', { class: 'primary' }, 'Ask'),
  );
  root.append(h('div', { class: 'title' }, h('h1', {}, name)), state, form, answer, h('h2', {}, 'Log'), log);
  let asked = 0;
  async function submit(event) {
    event.preventDefault();
    replace(answer, h('p', { class: 'muted' }, 'A job on the cluster asks; that takes some seconds.'));
    try {
      const told = await post(`/api/cluster/${path(name)}/ask`, {
        kind: kind.value,
        trial: trial.value.trim() === '' ? null : Number(trial.value),
        assignments: values.value.trim().split(/\s+/).filter(Boolean),
      });
      replace(answer);
      toast(told.answer);
    } catch (error) {
      replace(answer, refusal(error));
    }
  }
  async function poll() {
    if (Date.now() - asked < 5000) return;
    asked = Date.now();
    const job = (await get('/api/cluster')).find(one => one.name === name);
    if (job === undefined) {
      say(state, 'The cluster does not know this sweep.');
      return;
    }
    replace(state, pill(job.state), ` ${duration(job.seconds)}, attempt ${job.attempt} ${job.message}`);
    say(log, job.said.join('\n'));
  }
  return { poll, button };
}
