// llama.cpp's side of judge_llama_cpp.py: `npm install node-llama-cpp`, which brings it built, and then
//
//     node benchmarks/judge_llama_cpp.mjs DIR
//
// writes the log-probability of every token of the windows for every GGUF file, and the tokens of the text.
// One thread; the package is looked up in DIR or its parents.
import fs from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { pathToFileURL } from "node:url";

const folder = path.resolve(process.argv[2]);
const entry = createRequire(path.join(folder, "x")).resolve("node-llama-cpp");
const { getLlama } = await import(pathToFileURL(entry).href);

const llama = await getLlama({ gpu: false, build: "never", maxThreads: 1 });
const windows = JSON.parse(fs.readFileSync(path.join(folder, "windows.json"), "utf8"));
const text = fs.readFileSync(path.join(folder, "text.txt"), "utf8");
const results = { "llama.cpp": llama.llamaCppRelease.release };

for (const name of fs.readdirSync(path.join(folder, "gguf")).sort()) {
    const modelPath = path.join(folder, "gguf", name, "model.gguf");
    const model = await llama.loadModel({ modelPath });
    const size = windows[0].length;
    const context = await model.createContext({
        contextSize: size, batchSize: size, threads: 1, flashAttention: false,
        experimentalKvCacheKeyType: "F32", experimentalKvCacheValueType: "F32",
    });
    const sequence = context.getSequence();
    results.tokens = model.tokenize(text, true);
    results[name] = [];
    for (const tokens of windows) {
        await sequence.clearHistory();
        const asked = tokens.map((token, i) => [token, { generateNext: wanted(tokens[i + 1]) }]);
        const found = await sequence.controlledEvaluate(asked);
        for (let i = 0; i + 1 < size; i++) {
            results[name].push(logProbability(found[i].next, tokens[i + 1]));
        }
    }
    fs.writeFileSync(path.join(folder, "llama_cpp.json"), JSON.stringify(results));
    console.log(name, "served");
    await context.dispose();
    await model.dispose();
}

function wanted(next) {
    const tokens = next === undefined ? [] : [next];
    // The largest logit: `includeMax` leaves it out where tokens are named (node-llama-cpp 3.22.1).
    return { logits: { filter: { tokens, includeTop: 1, includeSelected: true } }, totalLogitWeight: true };
}

// The weight is the sum of exp(logit - largest logit) over the vocabulary.
function logProbability({ logits, totalLogitWeight }, token) {
    return logits.get(token) - Math.max(...logits.values()) - Math.log(totalLogitWeight);
}
