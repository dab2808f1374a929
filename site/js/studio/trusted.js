// The only script URL that this page may start is the runtime's worker. Imported first by main.js, since
// the content-security policy requires trusted types and the policy must stand before the worker starts.

const worker = new URL("../runtime/worker.js", import.meta.url).href;

/**
 * @param {string} url address that a script is about to be started from
 * @returns {string} the same address
 * @throws {TypeError} any address but the worker's
 */
function createScriptURL(url) {
  if (new URL(url, document.baseURI).href !== worker) throw new TypeError(`expected ${worker}, found ${url}`);
  return url;
}

globalThis.trustedTypes?.createPolicy("default", { createScriptURL });
