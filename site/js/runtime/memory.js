// Places values in arenas once sizes are known. The exporter does the same (exporter/lower/memory.py).

/**
 * @typedef {{arena: number, first: number, last: number, bytes: number}} Lifetime
 *   a temporary: alive from dispatch `first` to `last`, both included
 */

/** Storage bindings must start at a multiple of this (minStorageBufferOffsetAlignment's default). */
export const ALIGNMENT = 256;

/**
 * @param {number} value
 * @param {number} multiple
 */
export function roundUp(value, multiple) {
  return Math.ceil(value / multiple) * multiple;
}

/**
 * Byte offsets of temporaries, each at the lowest aligned offset free during its life.
 * @param {Lifetime[]} values in plan order
 * @param {number} arenas how many
 * @returns {{offsets: number[], sizes: number[]}} offset of each value in its arena; bytes of each arena
 */
export function planArenas(values, arenas) {
  const offsets = new Array(values.length).fill(0);
  const sizes = new Array(arenas).fill(0);
  const order = values.map((_, index) => index).sort((a, b) => values[a].first - values[b].first || a - b);
  /** @type {number[][]} */
  const placed = Array.from({ length: arenas }, () => []);
  for (const index of order) {
    const value = values[index];
    const rivals = placed[value.arena]
      .filter((other) => values[other].first <= value.last && value.first <= values[other].last)
      .sort((a, b) => offsets[a] - offsets[b]);
    let offset = 0;
    for (const other of rivals) {
      if (offset + value.bytes <= offsets[other]) break;
      offset = Math.max(offset, roundUp(offsets[other] + values[other].bytes, ALIGNMENT));
    }
    offsets[index] = offset;
    placed[value.arena].push(index);
    sizes[value.arena] = Math.max(sizes[value.arena], roundUp(offset + value.bytes, ALIGNMENT));
  }
  return { offsets, sizes };
}
