/** What the model said at each point of the run, side by side: before and after training. */
import type { Json } from '../events/event.js';
import type { RunState } from '../events/run-state.js';
import { escape } from './html.js';

interface Answers {
  readonly stage: string;
  readonly byPrompt: ReadonlyMap<string, string>;
}

function answersOf(state: RunState): Answers[] {
  return state.stages.flatMap((stage) => {
    const texts = stage.outputs['texts'];
    const listed = Array.isArray(texts) ? (texts as readonly Record<string, Json>[]) : stage.answers;
    const byPrompt = new Map(listed.map(({ prompt, text }) => [String(prompt), String(text)]));
    return byPrompt.size === 0 ? [] : [{ stage: stage.id, byPrompt }];
  });
}

export function answersSection(state: RunState): string {
  const answers = answersOf(state);
  if (answers.length === 0) return '';
  const prompts = [...new Set(answers.flatMap(({ byPrompt }) => [...byPrompt.keys()]))];
  const head = answers.map(({ stage }) => `<th>${escape(stage)}</th>`).join('');
  const rows = prompts.map((prompt) => {
    const cells = answers.map(
      ({ byPrompt }) => `<td class="answer">${escape(byPrompt.get(prompt) ?? '')}</td>`,
    );
    return `<tr><td class="answer"><b>${escape(prompt)}</b></td>${cells.join('')}</tr>`;
  });
  return `<h2>Answers</h2><div class="box"><table><tr><th>question</th>${head}</tr>${rows.join('')}</table></div>`;
}
