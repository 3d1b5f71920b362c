// What browser.py calls: one LiteRT.js instance, and the files that are loaded into it by number.

import {loadAndCompile, loadLiteRt, Tensor} from '@litertjs/core';

const WASM = '/node_modules/@litertjs/core/wasm/';
const files = new Map(); // number -> {model, input}
let instance;

// LiteRT.js reports some failures on the console only, and then hands out zeros: they are caught here.
let complaints = [];
const writeError = console.error;
console.error = (...parts) => {
  const text = parts.join(' ');
  if (!/^(INFO|VERBOSE|WARNING):/.test(text)) {
    complaints.push(text.trim().replace(/\s+/g, ' '));
  }
  writeError(...parts);
};

// Nothing is thrown out of the page: what is thrown there is the end of the browser, and not LiteRT.js's word.
function guarded(work) {
  return async (...parameters) => {
    complaints = [];
    let value;
    try {
      value = await work(...parameters);
    } catch (error) {
      complaints.unshift(error instanceof Error ? error.message : String(error));
    }
    return complaints.length ? {failure: complaints.join(' ')} : {value};
  };
}

// One inference: what a page waits for, the outputs' values included.
async function infer(model, input) {
  const start = performance.now();
  const outputs = await model.run(input);
  const values = outputs.map((output) => output.toTypedArray()); // copies
  const milliseconds = performance.now() - start;
  outputs.forEach((output) => output.delete());
  return {values, milliseconds};
}

function describe({dtype, shape}) {
  return {dtype, shape: [...shape]};
}

function bytesOf(text) {
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
}

function textOf(values) {
  const bytes = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  let text = '';
  for (let start = 0; start < bytes.length; start += 8192) {
    text += String.fromCharCode(...bytes.subarray(start, start + 8192));
  }
  return btoa(text);
}

const functions = {
  // Loads LiteRT.js; says which build it chose, how many threads that has, and whether the clock ticks every 5 us.
  async start(threads) {
    instance = await loadLiteRt(WASM, {threads: threads > 1});
    const build = performance.getEntriesByType('resource').map(({name}) => name).find((name) => name.endsWith('.wasm'));
    return {build: build.split('/').pop(), mostThreads: instance.liteRtWasm.getThreadCount(), crossOriginIsolated};
  },

  async load(number, threads) {
    const response = await fetch(`/files/${number}`);
    const content = new Uint8Array(await response.arrayBuffer());
    const model = await loadAndCompile(content, {accelerator: 'wasm', cpuOptions: {numThreads: threads}});
    files.set(number, {model});
    return {inputs: model.getInputDetails().map(describe), outputs: model.getOutputDetails().map(describe)};
  },

  async run(number, text) {
    const {model} = files.get(number);
    const input = new Tensor(new Float32Array(bytesOf(text).buffer), [...model.getInputDetails()[0].shape]);
    try {
      return (await infer(model, input)).values.map(textOf);
    } finally {
      input.delete();
    }
  },

  // The input that measure() uses again and again.
  async prepare(number, text) {
    const file = files.get(number);
    file.input = new Tensor(new Float32Array(bytesOf(text).buffer), [...file.model.getInputDetails()[0].shape]);
  },

  async measure(number) {
    const {model, input} = files.get(number);
    for (let turn = 0; turn < 3; turn++) {
      await infer(model, input); // brings its weights back into the caches that other files have filled meanwhile
    }
    return (await infer(model, input)).milliseconds;
  },

  heapBytes() {
    return instance.liteRtWasm.HEAPU8.length;
  },

  unload(number) {
    files.get(number)?.input?.delete();
    files.get(number)?.model.delete();
    files.delete(number);
  },
};

window.reflow = Object.fromEntries(Object.entries(functions).map(([name, work]) => [name, guarded(work)]));
