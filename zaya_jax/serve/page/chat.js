// The tab for chats.

let turns = [];       // what a model is to see: a question without an answer leaves it
let question = null;  // the turn that was asked last

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
  question = { role: 'user', content: text };
  turns.push(question);
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
  const last = [...document.querySelectorAll('.turn.user')].at(-1);
  if (!last) return;
  while (last.nextSibling) last.nextSibling.remove();
  if (turns.includes(question)) turns.length = turns.indexOf(question);
  turns.push(question);
  ask();
});
$('clear').addEventListener('click', () => {
  if (running) return;
  turns = [];
  question = null;
  document.querySelectorAll('.turn').forEach(turn => turn.remove());
  $('welcome').hidden = false;
  $('again').disabled = $('clear').disabled = true;
  $('speed').textContent = '';
  $('question').focus();
});
