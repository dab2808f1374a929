// What the runtime uses of @huggingface/tokenizers; the build copies the library to js/vendor/tokenizers.js.

export class Tokenizer {
  constructor(tokenizer: object, config: object);
  encode(text: string, options?: { add_special_tokens?: boolean }): { ids: number[] };
}
