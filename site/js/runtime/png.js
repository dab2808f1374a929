// PNG files: RGB(A) pixels plus text chunks, and the text chunks back. Latin-1 text goes in tEXt, which
// every reader knows, anything else in iTXt as UTF-8.

import { BitbrushError } from "./errors.js";

const SIGNATURE = Uint8Array.of(0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a);

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; bit += 1) value = value & 1 ? 0xedb88320 ^ (value >>> 1) : value >>> 1;
  return value;
});

/** @param {Uint8Array} bytes */
function crc32(bytes) {
  let value = 0xffffffff;
  for (const byte of bytes) value = CRC_TABLE[(value ^ byte) & 255] ^ (value >>> 8);
  return (value ^ 0xffffffff) >>> 0;
}

/**
 * @param {Uint8Array<ArrayBuffer>[]} pieces
 * @returns {Uint8Array<ArrayBuffer>}
 */
function concat(...pieces) {
  const joined = new Uint8Array(pieces.reduce((sum, piece) => sum + piece.length, 0));
  let offset = 0;
  for (const piece of pieces) {
    joined.set(piece, offset);
    offset += piece.length;
  }
  return joined;
}

/** @param {string} text of characters below 256 @returns {Uint8Array<ArrayBuffer>} */
const latin1 = (text) => Uint8Array.from(text, (character) => character.charCodeAt(0));

/**
 * @param {string} type four letters
 * @param {Uint8Array<ArrayBuffer>} data
 */
function chunk(type, data) {
  const made = new Uint8Array(data.length + 12);
  const view = new DataView(made.buffer);
  view.setUint32(0, data.length);
  made.set(latin1(type), 4);
  made.set(data, 8);
  view.setUint32(data.length + 8, crc32(made.subarray(4, data.length + 8)));
  return made;
}

/**
 * @param {string} keyword 1 to 79 Latin-1 characters
 * @param {string} text
 */
function textChunk(keyword, text) {
  const name = latin1(`${keyword}\0`);
  // tEXt may hold no zero byte and, in Latin-1, no control characters but the line feed.
  if (/^[\n\x20-\x7e\xa0-\xff]*$/.test(text)) return chunk("tEXt", concat(name, latin1(text)));
  const utf8 = new TextEncoder().encode(text.replaceAll("\0", "\ufffd"));
  // Not compressed, no language, no translation.
  return chunk("iTXt", concat(name, Uint8Array.of(0, 0, 0, 0), utf8));
}

/**
 * Bytes through a (de)compression stream.
 * @param {Uint8Array<ArrayBuffer>} bytes
 * @param {CompressionStream | DecompressionStream} stream
 */
async function pipe(bytes, stream) {
  const body = new Blob([bytes]).stream().pipeThrough(stream);
  return new Uint8Array(await new Response(body).arrayBuffer());
}

/**
 * Rows, each with the filter of five that leaves the smallest numbers: they compress best.
 * @param {Uint8Array} raw rows without filter bytes
 * @param {number} rowBytes
 * @param {number} pixelBytes
 */
function filterRows(raw, rowBytes, pixelBytes) {
  const rows = raw.length / rowBytes;
  const filtered = new Uint8Array(raw.length + rows);
  const candidate = new Uint8Array(rowBytes);
  for (let row = 0; row < rows; row += 1) {
    const at = row * rowBytes;
    const out = row * (rowBytes + 1);
    let least = Infinity;
    for (let filter = 0; filter < 5; filter += 1) {
      let sum = 0;
      for (let i = 0; i < rowBytes; i += 1) {
        const left = i < pixelBytes ? 0 : raw[at + i - pixelBytes];
        const up = row === 0 ? 0 : raw[at + i - rowBytes];
        const corner = row === 0 || i < pixelBytes ? 0 : raw[at + i - rowBytes - pixelBytes];
        const value = (raw[at + i] - predict(filter, left, up, corner)) & 255;
        candidate[i] = value;
        sum += value < 128 ? value : 256 - value;
      }
      if (sum >= least) continue;
      least = sum;
      filtered[out] = filter;
      filtered.set(candidate, out + 1);
    }
  }
  return filtered;
}

/**
 * @param {number} filter PNG's 0 to 4: none, left, up, average, Paeth
 * @param {number} left
 * @param {number} up
 * @param {number} corner
 */
function predict(filter, left, up, corner) {
  if (filter === 0) return 0;
  if (filter === 1) return left;
  if (filter === 2) return up;
  if (filter === 3) return (left + up) >> 1;
  const guess = left + up - corner;
  const [toLeft, toUp, toCorner] = [Math.abs(guess - left), Math.abs(guess - up), Math.abs(guess - corner)];
  if (toLeft <= toUp && toLeft <= toCorner) return left;
  return toUp <= toCorner ? up : corner;
}

/**
 * A PNG file.
 * @param {{pixels: Uint8ClampedArray | Uint8Array, width: number, height: number, text?: Record<string, string>}} picture
 *   pixels: RGBA, u8[height, width, 4]; text: keyword -> text
 * @returns {Promise<Uint8Array<ArrayBuffer>>}
 */
export async function encodePng({ pixels, width, height, text = {} }) {
  if (pixels.length !== width * height * 4) {
    throw new BitbrushError("bad-request", `pixels: expected ${width * height * 4} bytes for ${width}×${height}, found ${pixels.length}`);
  }
  let opaque = true;
  for (let i = 3; i < pixels.length && opaque; i += 4) opaque = pixels[i] === 255;
  const pixelBytes = opaque ? 3 : 4;
  const raw = new Uint8Array(width * height * pixelBytes);
  for (let from = 0, to = 0; from < pixels.length; from += 4, to += pixelBytes) {
    raw.set(pixels.subarray(from, from + pixelBytes), to);
  }
  const header = new Uint8Array(13);
  const view = new DataView(header.buffer);
  view.setUint32(0, width);
  view.setUint32(4, height);
  // 8 bits, RGB or RGBA, deflate, the five filters, not interlaced.
  header.set([8, opaque ? 2 : 6, 0, 0, 0], 8);
  const data = await pipe(filterRows(raw, width * pixelBytes, pixelBytes), new CompressionStream("deflate"));
  const texts = Object.entries(text).map(([keyword, value]) => textChunk(keyword, value));
  return concat(SIGNATURE, chunk("IHDR", header), ...texts, chunk("IDAT", data), chunk("IEND", new Uint8Array(0)));
}

/**
 * Text chunks of a PNG file by keyword; of several with one keyword the last. A file that is broken or no
 * PNG gives what could be read, at worst nothing.
 * @param {Uint8Array<ArrayBuffer>} file
 * @returns {Promise<Record<string, string>>}
 */
export async function readPngText(file) {
  /** @type {Record<string, string>} */
  const texts = {};
  if (!SIGNATURE.every((byte, index) => file[index] === byte)) return texts;
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
  let at = SIGNATURE.length;
  while (at + 12 <= file.length) {
    const length = view.getUint32(at);
    const type = String.fromCharCode(...file.subarray(at + 4, at + 8));
    if (at + 12 + length > file.length) break;
    const entry = await readTextChunk(type, file.subarray(at + 8, at + 8 + length));
    if (entry) texts[entry[0]] = entry[1];
    at += 12 + length;
  }
  return texts;
}

/**
 * @param {string} type
 * @param {Uint8Array<ArrayBuffer>} data
 * @returns {Promise<[string, string] | null>} keyword and text
 */
async function readTextChunk(type, data) {
  const end = data.indexOf(0);
  if (!["tEXt", "zTXt", "iTXt"].includes(type) || end < 1) return null;
  const keyword = new TextDecoder("latin1").decode(data.subarray(0, end));
  try {
    if (type === "tEXt") return [keyword, Array.from(data.subarray(end + 1), (byte) => String.fromCharCode(byte)).join("")];
    if (type === "zTXt") {
      const bytes = await pipe(data.subarray(end + 2), new DecompressionStream("deflate"));
      return [keyword, Array.from(bytes, (byte) => String.fromCharCode(byte)).join("")];
    }
    const language = data.indexOf(0, end + 3);
    const translated = language < 0 ? -1 : data.indexOf(0, language + 1);
    if (translated < 0) return null;
    const body = data.subarray(translated + 1);
    const bytes = data[end + 1] === 1 ? await pipe(body, new DecompressionStream("deflate")) : body;
    return [keyword, new TextDecoder().decode(bytes)];
  } catch {
    return null;
  }
}
