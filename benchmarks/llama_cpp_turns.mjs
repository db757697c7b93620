// llama.cpp in end_to_end.py: milliseconds of a prompt and of a token, once for every line read.
//
//     node benchmarks/llama_cpp_turns.mjs FILE.gguf PROMPT MORE THREADS
//
// `npm install node-llama-cpp` in FILE's folder or above it brings llama.cpp built.
import { createRequire } from "node:module";
import path from "node:path";
import readline from "node:readline";
import { pathToFileURL } from "node:url";

const [file, prompt, more, threads] = process.argv.slice(2).map((word, i) => (i ? Number(word) : path.resolve(word)));
const entry = createRequire(file).resolve("node-llama-cpp");
const { getLlama } = await import(pathToFileURL(entry).href);

const llama = await getLlama({ gpu: false, build: "never", maxThreads: threads });
const model = await llama.loadModel({ modelPath: file });
const context = await model.createContext({ contextSize: prompt + more + 8, batchSize: prompt, threads });
const sequence = context.getSequence();
const tokens = Array.from({ length: prompt }, (_, i) => 100 + i);

for await (const _ of readline.createInterface({ input: process.stdin })) {
    await sequence.clearHistory();
    const began = performance.now();
    const marks = [];
    for await (const token of sequence.evaluate(tokens, { temperature: 0, yieldEogToken: true })) {
        marks.push(performance.now());
        if (marks.length > more) break;
    }
    const last = marks.at(-1);
    const figures = { "prompt, ms": marks[0] - began, "token, ms": (last - marks[0]) / (marks.length - 1) };
    console.log(JSON.stringify(figures));
}
