// A prompt as the text encoder's token ids, as Flux2KleinPipeline makes them: chat template around the
// prompt, cut on the right, padded on the right.

import { Tokenizer } from "../vendor/tokenizers.js";
import { BitbrushError, asBitbrushError } from "./errors.js";
import { fetchJson } from "./files.js";

/**
 * @typedef {import("./manifest.js").TextSettings} TextSettings
 * @typedef {{ids: Uint32Array<ArrayBuffer>, mask: Uint32Array<ArrayBuffer>, length: number}} Tokens
 *   ids and mask (1 for a real token): u32[text.length]; length: tokens before cutting and padding
 */

/**
 * @typedef {(prompt: string) => Tokens} Tokenize
 */

/**
 * @param {unknown} tokenizerJson contents of tokenizer.json
 * @param {unknown} configJson contents of tokenizer_config.json
 * @param {TextSettings} text
 * @returns {Tokenize}
 */
export function createTokenizer(tokenizerJson, configJson, text) {
  /** @type {Tokenizer} */
  let tokenizer;
  try {
    tokenizer = new Tokenizer(/** @type {object} */ (tokenizerJson), /** @type {object} */ (configJson));
  } catch (error) {
    throw asBitbrushError(error, "bad-bundle", "tokenizer.json");
  }
  return (prompt) => {
    // Half a surrogate pair is no text; it becomes the replacement character, as any UTF-8 encoder does.
    const wrapped = text.prefix + prompt.toWellFormed() + text.suffix;
    const found = tokenizer.encode(wrapped, { add_special_tokens: false }).ids;
    const kept = found.slice(0, text.length);
    if (kept.some((id) => !Number.isInteger(id))) {
      throw new BitbrushError("bad-bundle", "tokenizer.json: expected a token for every byte, found none for some");
    }
    const ids = new Uint32Array(text.length).fill(text.pad_id);
    ids.set(kept);
    const mask = new Uint32Array(text.length).fill(1, 0, kept.length);
    return { ids, mask, length: found.length };
  };
}

/**
 * @param {string} folderUrl ends in a slash
 * @param {TextSettings} text
 * @param {AbortSignal} [signal]
 */
export async function loadTokenizer(folderUrl, text, signal) {
  const [tokenizerJson, configJson] = await Promise.all([
    fetchJson(new URL("tokenizer.json", folderUrl).href, signal),
    fetchJson(new URL("tokenizer_config.json", folderUrl).href, signal),
  ]);
  return createTokenizer(tokenizerJson, configJson, text);
}
