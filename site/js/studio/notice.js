// The panel that stands above the form when no picture can be made here: what is missing, what helps.
// The browser's name is used for advice only, never to choose how anything is computed.

import { advice, notices } from "./strings.js";

/** @param {string} agent the browser's user agent @returns {string[]} advice for getting WebGPU in it */
export function browserAdvice(agent) {
  if (/iPhone|iPad|iPod/.test(agent)) return advice.ios;
  if (/Firefox\//.test(agent)) return advice.firefox;
  if (/Chrome\/|Chromium\//.test(agent)) return advice.chromium;
  if (/Safari\//.test(agent)) return advice.safari;
  return advice.other;
}

/**
 * @param {"no-webgpu" | "no-adapter" | "no-models"} code why nothing can be drawn
 */
export function showNotice(code) {
  let [title, body, lines] = [notices[code], notices.text, browserAdvice(navigator.userAgent)];
  if (code === "no-models") [body, lines] = [notices.no_models_text, []];
  else if (!isSecureContext) [title, body, lines] = [notices.insecure, notices.insecure_text, advice.insecure];
  else if (code === "no-adapter") lines = advice.adapter;
  document.getElementById("notice-title").textContent = title;
  document.getElementById("notice-text").textContent = body;
  document.getElementById("notice-advice").replaceChildren(...lines.map((line) => {
    const item = document.createElement("li");
    item.textContent = line;
    return item;
  }));
  const notice = document.getElementById("notice");
  notice.dataset.code = code;
  notice.hidden = false;
}
