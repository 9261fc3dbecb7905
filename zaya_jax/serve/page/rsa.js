// The tab for Markovian RSA.

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
