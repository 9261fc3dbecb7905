'use strict';
// Chat and Markovian RSA over the server's own API. What a model writes is only ever set as text.

const $ = id => document.getElementById(id);
const make = (tag, className = '', text = '') =>
  Object.assign(document.createElement(tag), { className, textContent: text });
const whole = new Intl.NumberFormat('en');
let model = null;    // as /v1/models describes it
let running = null;  // the AbortController of what is under way

function fault(text) { $('fault').textContent = text; $('fault').hidden = !text; }

function headers() {
  const key = $('key').value.trim();
  return { 'Content-Type': 'application/json', ...(key && { Authorization: `Bearer ${key}` }) };
}

async function failure(response) {
  try { return (await response.json()).error.message; }
  catch { return `the server answered ${response.status}`; }
}

// The events of a streamed answer, one JSON object each.
async function* stream(body, signal) {
  const response = await fetch('v1/chat/completions', {
    method: 'POST', headers: headers(), signal,
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
  });
  if (!response.ok) throw new Error(await failure(response));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error('the connection broke off');
    const events = (rest + value).split('\n\n');
    rest = events.pop();
    for (const event of events) {
      if (!event.startsWith('data: ')) continue;
      const data = event.slice(6);
      if (data === '[DONE]') return;
      const record = JSON.parse(data);
      if (record.error) throw new Error(record.error.message);
      yield record;
    }
  }
}

function sampling() {
  const number = id => $(id).value === '' ? undefined : Number($(id).value);
  return { temperature: number('temperature'), top_p: number('top_p'), seed: number('seed') };
}

function conversation(turns) {
  const system = $('system').value.trim();
  return [...(system ? [{ role: 'system', content: system }] : []), ...turns];
}

// Runs one thing at a time; the button that began it stops it meanwhile.
async function exclusively(button, work) {
  if (running) return;
  const label = button.textContent;
  running = new AbortController();
  button.textContent = 'Stop';
  fault('');
  try { await work(running.signal); }
  catch (error) { if (error.name !== 'AbortError') fault(error.message); }
  finally { running = null; button.textContent = label; }
}

/* Chat */

let turns = [];

function show(role) {
  const turn = make('div', `turn ${role}`);
  $('welcome').hidden = true;
  $('turns').append(turn);
  return turn;
}

function atEnd() { const t = $('turns'); return t.scrollHeight - t.scrollTop - t.clientHeight < 80; }
function toEnd() { const t = $('turns'); t.scrollTop = t.scrollHeight; }

async function ask() {
  await exclusively($('send'), async signal => {
    const turn = show('assistant');
    const thought = make('details'), title = make('summary', '', 'Thinking'), inside = make('div', 'thought');
    const content = make('div', 'content busy'), end = make('div', 'end');
    thought.append(title, inside);
    thought.open = true;
    turn.append(content);
    toEnd();
    const said = { role: 'assistant', content: '' }, calls = [];
    const begun = performance.now();
    let first = 0, reason = 'stopped', usage = null;
    $('again').disabled = $('clear').disabled = true;
    try {
      const most = $('max_tokens').value, effort = $('thinking').value;
      const body = {
        messages: conversation(turns), ...sampling(),
        ...(most && { max_tokens: Number(most) }), ...(effort && { reasoning_effort: effort }),
      };
      for await (const record of stream(body, signal)) {
        usage = record.usage ?? usage;
        const choice = record.choices[0];
        if (!choice) continue;
        const follow = atEnd(), delta = choice.delta;
        reason = choice.finish_reason ?? reason;
        if (delta.reasoning_content || delta.content || delta.tool_calls) first ||= performance.now();
        if (delta.reasoning_content) {
          if (!thought.isConnected) turn.prepend(thought);
          said.reasoning_content = (said.reasoning_content ?? '') + delta.reasoning_content;
          inside.append(delta.reasoning_content);
        }
        if (delta.content) {
          if (!said.content && thought.isConnected) {
            thought.open = false;
            title.textContent = `Thought for ${((performance.now() - begun) / 1000).toFixed(1)} s`;
          }
          said.content += delta.content;
          content.append(delta.content);
        }
        for (const part of delta.tool_calls ?? []) {
          calls[part.index] ??= content.appendChild(make('code', 'call', `${part.function.name} `));
          calls[part.index].append(part.function.arguments ?? '');
        }
        if (follow) toEnd();
      }
    } finally {
      content.classList.remove('busy');
      if (said.content) turns.push(said);
      else turns.pop();
      const why = { length: 'cut at its most tokens', stopped: 'stopped', tool_calls: 'calls a tool' }[reason];
      if (why) end.textContent = `— ${why}`;
      turn.append(end);
      if (usage && first) {
        const seconds = (performance.now() - first) / 1000;
        $('speed').textContent = `${whole.format(usage.completion_tokens)} tokens, ` +
          `${(usage.completion_tokens / Math.max(seconds, 1e-3)).toFixed(1)}/s, first after ` +
          `${((first - begun) / 1000).toFixed(2)} s`;
      }
      $('again').disabled = $('clear').disabled = false;
    }
  });
}

$('ask').addEventListener('submit', event => {
  event.preventDefault();
  if (running) return running.abort();
  const text = $('question').value.trim();
  if (!text) return;
  $('question').value = '';
  turns.push({ role: 'user', content: text });
  show('user').textContent = text;
  ask();
});
$('question').addEventListener('keydown', event => {
  if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    if (!running) $('ask').requestSubmit();
  }
});
$('again').addEventListener('click', () => {
  if (running) return;
  const users = [...document.querySelectorAll('.turn.user')], last = users.at(-1);
  if (!last) return;
  while (last.nextSibling) last.nextSibling.remove();
  while (turns.length && turns.at(-1).role !== 'user') turns.pop();
  if (turns.length < users.length * 2 - 1) turns.push({ role: 'user', content: last.textContent });
  ask();
});
$('clear').addEventListener('click', () => {
  if (running) return;
  turns = [];
  document.querySelectorAll('.turn').forEach(turn => turn.remove());
  $('welcome').hidden = false;
  $('again').disabled = $('clear').disabled = true;
  $('speed').textContent = '';
  $('question').focus();
});

/* Markovian RSA */

const NUMBERS = ['population', 'candidates', 'rounds', 'tail', 'budget', 'final_budget'];
const GLYPHS = { waiting: '·', writing: '▸', finished: '●', cut: '○' };
let stages = [];       // of the run that is shown: {element, rollouts, shown}
let selected = null;   // [stage, rollout]
let lit = [];          // [stage, rollout] whose sources are marked; empty for none

// A preset's numbers; where the model has no room for them, smaller ones of the same kind.
function preset(name) {
  const numbers = { ...model.zaya.rsa_presets[name] };
  const room = model.max_model_len, longest = Math.max(numbers.budget, numbers.final_budget ?? 0);
  if (numbers.candidates * numbers.tail + longest + 400 > room) {
    numbers.budget = numbers.final_budget = Math.max(8, Math.floor(room / 4));
    numbers.tail = Math.max(4, Math.floor(room / 4 / numbers.candidates));
  }
  for (const id of NUMBERS) $(id).value = numbers[id] ?? numbers.budget;
}

function addStage(news) {
  const element = make('section', 'stage'), title = make('h2', '', `${news.name[0].toUpperCase()}${news.name.slice(1)} `);
  const note = make('span'), cells = make('div', 'cells'), votes = make('ol', 'votes');
  title.append(note);
  element.append(title, cells, votes);
  const stage = { element, note, votes, shown: news.shown, budget: news.budget, name: news.name, rollouts: [] };
  const number = stages.length;
  for (let i = 0; i < news.rollouts; i++) {
    const cell = make('button', 'cell waiting');
    cell.type = 'button';
    cell.tabIndex = i ? -1 : 0;
    cell.addEventListener('click', () => select(number, i));
    cell.addEventListener('keydown', event => step(event, number, i));
    for (const type of ['mouseenter', 'focus']) cell.addEventListener(type, () => highlight(number, i));
    for (const type of ['mouseleave', 'blur']) cell.addEventListener(type, () => highlight(...(selected ?? [])));
    cells.append(cell);
    stage.rollouts.push({ cell, state: 'waiting', written: '', news: null });
  }
  stages.push(stage);
  $('stages').append(element);
  stage.rollouts.forEach((_, i) => paint(number, i));
  count(stage);
  draw();
}

function paint(number, i) {
  const { cell, state, written, news } = stages[number].rollouts[i];
  cell.className = `cell ${state}`;
  cell.setAttribute('aria-pressed', String(selected?.[0] === number && selected?.[1] === i));
  const facts = news ? `${whole.format(news.tokens)} tokens` : written ? `${whole.format(written.length)} chars` : state;
  const said = news ? (news.answer ?? 'no answer') : '';
  cell.replaceChildren(make('b', '', `${GLYPHS[state]} ${i + 1}`), make('span', '', facts), make('span', 'said', said));
  cell.setAttribute('aria-label', `${stages[number].name}, rollout ${i + 1}: ${state}, ${facts}${said && `, ${said}`}`);
  if (selected?.[0] === number && selected?.[1] === i) detail();
}

function count(stage) {
  const done = stage.rollouts.filter(r => r.news).length;
  stage.note.textContent = `${done} of ${stage.rollouts.length} rollouts, at most ${whole.format(stage.budget)} tokens each`;
}

function vote(stage, votes) {
  const total = stage.rollouts.length;
  const silent = total - votes.reduce((sum, v) => sum + v.voters.length, 0);
  const row = (answer, number, className) => {
    const line = make('li', className), bar = make('i'), box = make('span');
    bar.style.width = `${100 * number / total}%`;
    box.append(bar);
    line.append(make('span', '', answer), box, make('span', '', String(number)));
    return line;
  };
  stage.votes.setAttribute('aria-label', `Votes of ${stage.name}`);
  stage.votes.replaceChildren(
    ...votes.slice(0, 6).map(v => row(v.answer, v.voters.length, '')),
    ...(silent ? [row('no answer', silent, 'none')] : []));
}

function step(event, number, i) {
  const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  if (!moves) return;
  event.preventDefault();
  const stage = stages[number + moves[0]];
  const next = stage?.rollouts[Math.min(i, stage.rollouts.length - 1) + moves[1]];
  if (!next) return;
  for (const { cell } of stages.flatMap(s => s.rollouts)) cell.tabIndex = -1;
  next.cell.tabIndex = 0;
  next.cell.focus();
}

function select(number, i) {
  const before = selected;
  selected = [number, i];
  if (before) paint(...before);
  paint(number, i);
  $('rollout').hidden = false;
  highlight(number, i);
}

function detail() {
  const [number, i] = selected, stage = stages[number], rollout = stage.rollouts[i], box = $('rollout');
  const news = rollout.news, sources = stage.shown[i] ?? [];
  box.querySelector('h2').textContent = `${stage.name}, rollout ${i + 1}`;
  box.querySelector('.facts').textContent = news
    ? `${whole.format(news.prompt_tokens)} tokens read, ${whole.format(news.tokens)} written, ` +
      (news.finish === 'length' ? 'cut at its budget' : 'finished') + `; answer: ${news.answer ?? 'none'}`
    : rollout.state;
  const line = box.querySelector('.sources');
  line.textContent = sources.length ? 'Was shown the tails of ' : 'Was shown the problem only.';
  for (const source of sources) {
    const button = make('button', '', `${source + 1}`);
    button.addEventListener('click', () => select(number - 1, source));
    line.append(button);
  }
  box.querySelector('.written').textContent = rollout.written || '…';
  box.querySelector('.tail').textContent = news ? `${news.cut ? '… ' : ''}${news.tail}` : '…';
}

function close() {
  if ($('rollout').hidden) return false;
  const [number, i] = selected;
  $('rollout').hidden = true;
  selected = null;
  paint(number, i);
  highlight();
  stages[number].rollouts[i].cell.focus();
  return true;
}

function highlight(number, i) {
  lit = number === undefined ? [] : [number, i];
  stages.forEach((stage, s) => stage.rollouts.forEach((rollout, r) => {
    const source = s === number - 1 && stages[number].shown[i].includes(r);
    rollout.cell.classList.toggle('source', source);
  }));
  for (const path of $('lines').children) path.classList.toggle('on', path.dataset.of === `${number}.${i}`);
}

// Lines from the tails of a round to the rollouts that were shown them.
function draw() {
  const box = $('run').getBoundingClientRect(), paths = [];
  stages.forEach((stage, number) => stage.shown.forEach((sources, i) => sources.forEach(source => {
    const to = stage.rollouts[i].cell.getBoundingClientRect();
    const from = stages[number - 1].rollouts[source].cell.getBoundingClientRect();
    const [x, y] = [from.x + from.width / 2 - box.x, from.bottom - box.y];
    const [u, v] = [to.x + to.width / 2 - box.x, to.y - box.y], half = (v - y) / 2;
    const path = document.createElementNS('http://www.w3.org/2000/svg', 'path');
    path.setAttribute('d', `M${x} ${y}C${x} ${y + half} ${u} ${v - half} ${u} ${v}`);
    path.dataset.of = `${number}.${i}`;
    paths.push(path);
  })));
  $('lines').replaceChildren(...paths);
  highlight(...lit);
}
new ResizeObserver(draw).observe($('stages'));

const TAKES = {
  stage: addStage,
  text(news) {
    const number = stages.length - 1, rollout = stages[number].rollouts[news.rollout];
    rollout.written += news.text;
    rollout.state = 'writing';
    paint(number, news.rollout);
  },
  rollout(news) {
    const number = stages.length - 1, rollout = stages[number].rollouts[news.rollout];
    rollout.news = news;
    rollout.state = news.finish === 'length' ? 'cut' : 'finished';
    paint(number, news.rollout);
    count(stages[number]);
  },
  votes(news) { vote(stages.at(-1), news.votes); },
  result(news) {
    $('result').hidden = false;
    $('answer').textContent = $('selection').value === 'none' ? 'none was selected' : news.answer ?? 'no rollout gives one';
    const longest = Math.max(...news.costs.map(cost => cost.longest_prompt));
    $('account').textContent = `D(q) = ${whole.format(news.decoded)} tokens decoded in ${news.costs.length} ` +
      `stages; longest prompt ${whole.format(longest)}; seed ${news.seed}`;
    $('result').scrollIntoView({ block: 'nearest' });
  },
};

async function solve(text) {
  await exclusively($('solve'), async signal => {
    stages = [];
    selected = null;
    lit = [];
    $('stages').replaceChildren();
    $('lines').replaceChildren();
    for (const id of ['how', 'rollout', 'result']) $(id).hidden = true;
    const given = $('given').querySelector('div');
    given.textContent = '';
    const rsa = { preset: $('preset').value, selection: $('selection').value };
    for (const id of NUMBERS) rsa[id] = Number($(id).value);
    const begun = performance.now();
    const clock = setInterval(() => {
      const decoded = stages.flatMap(s => s.rollouts).reduce((sum, r) => sum + (r.news?.tokens ?? 0), 0);
      $('progress').textContent = `${((performance.now() - begun) / 1000).toFixed(0)} s, ${whole.format(decoded)} tokens`;
    }, 250);
    try {
      const messages = conversation([{ role: 'user', content: text }]);
      for await (const record of stream({ messages, rsa, ...sampling() }, signal)) {
        if (record.rsa) TAKES[record.rsa.event]?.(record.rsa);
        const delta = record.choices[0]?.delta;
        if (delta?.content) given.append(delta.content);
      }
    } finally { clearInterval(clock); }
  });
}

$('problem-form').addEventListener('submit', event => {
  event.preventDefault();
  if (running) return running.abort();
  const text = $('problem').value.trim();
  if (text) solve(text);
});
$('preset').addEventListener('change', () => preset($('preset').value));
$('close-rollout').addEventListener('click', close);

/* Around both */

function tab(name) {
  for (const id of ['chat', 'rsa']) {
    $(id).hidden = id !== name;
    $(`tab-${id}`).setAttribute('aria-selected', String(id === name));
    $(`tab-${id}`).tabIndex = id === name ? 0 : -1;
  }
  history.replaceState(null, '', `#${name}`);
  if (name === 'rsa') draw();
}
for (const id of ['chat', 'rsa']) {
  $(`tab-${id}`).addEventListener('click', () => tab(id));
  $(`tab-${id}`).addEventListener('keydown', event => {
    if (event.key !== 'ArrowLeft' && event.key !== 'ArrowRight') return;
    const other = id === 'chat' ? 'rsa' : 'chat';
    tab(other);
    $(`tab-${other}`).focus();
  });
}
$('open-settings').addEventListener('click', () => $('settings').showModal());
document.addEventListener('keydown', event => {
  if (event.key === 'Escape' && !$('settings').open && !close()) running?.abort();
  const typing = event.target.matches('input, textarea, select');
  if (event.key === ',' && !typing && !event.ctrlKey && !event.metaKey) $('settings').showModal();
});

async function meet() {
  try {
    const response = await fetch('v1/models', { headers: headers() });
    if (!response.ok) throw new Error(await failure(response));
    model = (await response.json()).data[0];
  } catch (error) { return fault(error.message); }
  fault('');
  $('model').textContent = model.id;
  document.title = `ZAYA: ${model.id}`;
  if (!$('preset').options.length) {
    for (const name of Object.keys(model.zaya.rsa_presets)) $('preset').append(new Option(name, name));
    $('preset').value = '16k-4k';
    preset('16k-4k');
  }
  if (!model.zaya.chat_template) $('welcome').textContent = 'This model has no chat template: it continues what you write.';
}
$('key').value = sessionStorage.getItem('key') ?? '';
$('key').addEventListener('change', () => { sessionStorage.setItem('key', $('key').value); meet(); });
if (location.hash === '#rsa') tab('rsa');
meet();
