// What the runtime offers to pages.

export { createClient } from "./client.js";
export { BitbrushError } from "./errors.js";
export { encodePng, readPngText } from "./png.js";
export { MAX_SEED, MAX_STEPS } from "./request.js";
