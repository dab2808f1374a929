// Progress by phase: one bar for the phase at work, a list of the phases with their amounts and seconds,
// and a polite announcement at each new phase and each further tenth.

import { formatSeconds, phases, text } from "./strings.js";

const element = (id) => document.getElementById(id);

/** @param {string} message said by screen readers when they have a moment */
export function announce(message) {
  element("live").textContent = message;
}

/**
 * Shows the progress of one run.
 *
 * @param {() => number} now clock in milliseconds
 * @returns {{update: (event: {phase: string, done: number, total: number, unit: string, fraction?: number}) => void,
 *            finish: () => Record<string, number>}} `finish` hides the panel and gives seconds a phase
 */
export function startProgress(now = () => performance.now()) {
  /** @type {Map<string, {row: HTMLLIElement, value: HTMLSpanElement, ms: number}>} */
  const seen = new Map();
  let current = "";
  let since = now();
  let tenth = -1;

  element("phases").replaceChildren();
  element("phase").textContent = text.started;
  element("bar").removeAttribute("value");
  element("progress").hidden = false;

  const leave = () => {
    const entry = seen.get(current);
    if (!entry) return;
    entry.ms += now() - since;
    entry.value.textContent = formatSeconds(entry.ms);
    entry.row.removeAttribute("aria-current");
  };

  const enter = (phase) => {
    leave();
    if (!seen.has(phase)) {
      const row = document.createElement("li");
      const value = document.createElement("span");
      row.append(phases[phase] ?? phase, value);
      element("phases").append(row);
      seen.set(phase, { row, value, ms: 0 });
    }
    seen.get(phase).row.setAttribute("aria-current", "step");
    current = phase;
    since = now();
    tenth = -1;
  };

  return {
    update(event) {
      const { phase, done, total, fraction = total > 0 ? done / total : 0 } = event;
      const fresh = phase !== current;
      if (fresh) enter(phase);
      const amount = total > 1 ? text.amount(event) : "";
      const label = phases[phase] ?? phase;
      element("phase").textContent = amount ? `${label}: ${amount}` : `${label}…`;
      seen.get(phase).value.textContent = amount;
      document.title = `${element("phase").textContent} – Bitbrush`;
      element("bar").value = Math.min(fraction, 1);
      const reached = Math.floor(10 * fraction);
      if (fresh || reached > tenth) announce(element("phase").textContent);
      tenth = Math.max(tenth, reached);
    },
    finish() {
      leave();
      current = "";
      element("progress").hidden = true;
      document.title = text.title;
      return Object.fromEntries([...seen].map(([phase, { ms }]) => [phase, ms / 1000]));
    },
  };
}
