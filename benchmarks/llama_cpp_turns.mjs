// llama.cpp in end_to_end.py: milliseconds of a prompt and of a token, once for every line read.
//
//     node benchmarks/llama_cpp_turns.mjs FILE.gguf PROMPT MORE THREADS [process_time]
//
// `npm install node-llama-cpp` in FILE's folder or above it brings llama.cpp built.
import { createRequire } from "node:module";
import path from "node:path";
import readline from "node:readline";
import { pathToFileURL } from "node:url";

const [file, ...rest] = process.argv.slice(2);
const [prompt, more, threads] = rest.map(Number);
const spent = ({ user, system }) => (user + system) / 1e3;
const now = () => (rest[3] === "process_time" ? spent(process.cpuUsage()) : performance.now());
const entry = createRequire(path.resolve(file)).resolve("node-llama-cpp");
const { getLlama } = await import(pathToFileURL(entry).href);

const llama = await getLlama({ gpu: false, build: "never", maxThreads: threads });
const model = await llama.loadModel({ modelPath: file });
const context = await model.createContext({ contextSize: prompt + more + 8, batchSize: prompt, threads });
const sequence = context.getSequence();
const tokens = Array.from({ length: prompt }, (_, i) => 100 + i);

for await (const _ of readline.createInterface({ input: process.stdin })) {
    await sequence.clearHistory();
    const began = now();
    const marks = [];
    for await (const token of sequence.evaluate(tokens, { temperature: 0, yieldEogToken: true })) {
        marks.push(now());
        if (marks.length > more) break;
    }
    const last = marks.at(-1);
    const figures = { "prompt, ms": marks[0] - began, "token, ms": (last - marks[0]) / (marks.length - 1) };
    console.log(JSON.stringify(figures));
}
