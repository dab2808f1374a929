// The right-hand side: the picture, its facts, saving it, and what went wrong.

import { download, fileName, pngFile } from "./save.js";
import { errors, text } from "./strings.js";

const element = (id) => document.getElementById(id);

/**
 * @param {HTMLElement} section holds the last picture in its property `bitbrush`, for build.py generate
 */
export function createResult(section) {
  let url = "";

  /** Shows the picture as the file that Save writes, so that the browser's own menu saves the same bytes. */
  const refresh = async () => {
    const picture = section.bitbrush;
    const file = await pngFile(picture, element("metadata").checked);
    URL.revokeObjectURL(url);
    url = URL.createObjectURL(file);
    element("picture").src = url;
  };

  const report = (title, hint, error) => {
    const heading = Object.assign(document.createElement("h3"), { textContent: title });
    const advice = Object.assign(document.createElement("p"), { textContent: hint });
    const details = document.createElement("details");
    const summary = Object.assign(document.createElement("summary"), { textContent: text.details });
    const message = document.createElement("p");
    message.id = "error-message";
    message.textContent = [error?.code, error?.message ?? String(error), error?.hint].filter(Boolean).join(" – ");
    details.append(summary, message);
    const box = element("error");
    box.dataset.code = error?.code ?? "unknown";
    box.dataset.message = error?.message ?? String(error);
    box.replaceChildren(heading, advice, details);
    box.hidden = false;
    box.scrollIntoView({ block: "nearest" });
  };

  element("metadata").addEventListener("change", () => section.bitbrush && refresh());
  element("save").addEventListener("click", async () => {
    try {
      await refresh();
      download(url, fileName(section.bitbrush));
    } catch (error) {
      report(text.saveFailed, errors.unknown[1], error);
    }
  });

  return {
    /** A run starts: the last picture stays in view under the progress panel. */
    begin() {
      element("error").hidden = true;
      element("placeholder").hidden = true;
      section.setAttribute("aria-busy", "true");
      const reduced = matchMedia("(prefers-reduced-motion: reduce)").matches;
      section.scrollIntoView({ block: "nearest", behavior: reduced ? "auto" : "smooth" });
    },

    /** @param {import("./save.js").Picture} picture */
    async show(picture) {
      section.bitbrush = picture;
      await refresh();
      const image = element("picture");
      Object.assign(image, { width: picture.width, height: picture.height, alt: text.alt(picture.prompt), hidden: false });
      image.classList.toggle("small", Math.max(picture.width, picture.height) < 512);
      element("facts").textContent = text.facts(picture);
      element("done").hidden = false;
      section.removeAttribute("aria-busy");
    },

    cancelled() {
      section.removeAttribute("aria-busy");
      element("placeholder").hidden = Boolean(section.bitbrush);
    },

    /** @param {any} error of the runtime, or anything thrown */
    fail(error) {
      section.removeAttribute("aria-busy");
      element("placeholder").hidden = Boolean(section.bitbrush);
      const [title, hint] = errors[error?.code] ?? errors.unknown;
      report(title, hint, error);
    },
  };
}
