// What browser.py calls: one LiteRT.js instance, and the files that are loaded into it by number.

import {loadAndCompile, loadLiteRt, Tensor} from '@litertjs/core';

const WASM = '/node_modules/@litertjs/core/wasm/';
const files = new Map(); // number -> {model, inputs}
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
async function infer(model, inputs) {
  const start = performance.now();
  const outputs = await model.run(inputs);
  const values = outputs.map((output) => output.toTypedArray()); // copies
  const milliseconds = performance.now() - start;
  outputs.forEach((output) => output.delete());
  return {values, milliseconds};
}

// One tensor an input of the file, of the numbers that are sent as text.
function makeInputs(model, texts) {
  return model.getInputDetails().map(({dtype, shape}, place) => {
    const {buffer} = bytesOf(texts[place]);
    return new Tensor(dtype === 'int32' ? new Int32Array(buffer) : new Float32Array(buffer), [...shape]);
  });
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

  async run(number, texts) {
    const {model} = files.get(number);
    const inputs = makeInputs(model, texts);
    try {
      return (await infer(model, inputs)).values.map(textOf);
    } finally {
      inputs.forEach((input) => input.delete());
    }
  },

  // The inputs that measure() uses again and again.
  async prepare(number, texts) {
    const file = files.get(number);
    file.inputs = makeInputs(file.model, texts);
  },

  async measure(number) {
    const {model, inputs} = files.get(number);
    for (let turn = 0; turn < 3; turn++) {
      await infer(model, inputs); // brings its weights back into the caches that other files have filled meanwhile
    }
    return (await infer(model, inputs)).milliseconds;
  },

  heapBytes() {
    return instance.liteRtWasm.HEAPU8.length;
  },

  unload(number) {
    files.get(number)?.inputs?.forEach((input) => input.delete());
    files.get(number)?.model.delete();
    files.delete(number);
  },
};

window.reflow = Object.fromEntries(Object.entries(functions).map(([name, work]) => [name, guarded(work)]));
