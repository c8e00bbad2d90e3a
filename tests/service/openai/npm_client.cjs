// OpenAI's own npm package against a server; what it saw, as one line of JSON.
//     node npm_client.cjs BASE_URL FOLDER_WITH_NODE_MODULES
const { createRequire } = require("node:module");
const [baseURL, folder] = process.argv.slice(2);
const OpenAI = createRequire(`${folder}/`)("openai");

const api = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "Hello" }];
const model = "fake";

async function streamed(create) {
  const seen = { text: "", finish: [], usage: null };
  for await (const chunk of await create) {
    for (const choice of chunk.choices) {
      seen.text += choice.delta?.content ?? choice.text ?? "";
      if (choice.finish_reason) seen.finish.push(choice.finish_reason);
    }
    seen.usage = chunk.usage ?? seen.usage;
  }
  return seen;
}

async function refused(call) {
  try {
    await call;
  } catch (error) {
    return { kind: error.constructor.name, status: error.status, param: error.param };
  }
  return null;
}

async function response() {
  const whole = await api.responses.create({ model, input: "Hello" });
  const seen = { text: whole.output_text, deltas: "", status: "" };
  for await (const event of await api.responses.create({ model, input: "Hello", stream: true })) {
    if (event.type === "response.output_text.delta") seen.deltas += event.delta;
    if (event.type === "response.completed") seen.status = event.response.status;
  }
  return seen;
}

async function cancelled() {
  const controller = new AbortController();
  const endless = { model, prompt: [300, 301], stream: true, max_tokens: 2000, ignore_eos: true };
  const stream = await api.completions.create(endless, { signal: controller.signal });
  let chunks = 0;
  for await (const _ of stream) {
    chunks += 1;
    controller.abort();
  }
  return chunks >= 1;
}

async function main() {
  const usage = { stream: true, stream_options: { include_usage: true } };
  const wrong = { type: "json_schema", json_schema: { name: "x", schema: { type: "wat" } } };
  const whole = await api.chat.completions.create({
    model, messages, logprobs: true, top_logprobs: 1, user: "u",
  });
  const prompts = await api.completions.create({ model, prompt: ["Hello", "Hello there"] });
  console.log(
    JSON.stringify({
      models: (await api.models.list()).data.map((one) => one.id),
      whole: whole.choices[0].message.content,
      logprobs: whole.choices[0].logprobs.content.length === whole.usage.completion_tokens,
      prompts: prompts.choices.map((one) => one.text),
      chat: await streamed(api.chat.completions.create({ model, messages, ...usage })),
      text: await streamed(api.completions.create({ model, prompt: "Hello there", ...usage })),
      value: await refused(api.chat.completions.create({ model, messages, temperature: -1 })),
      schema: await refused(
        api.chat.completions.create({ model, messages, response_format: wrong }),
      ),
      missing: await refused(api.chat.completions.create({ model: "another", messages })),
      stored: await refused(api.responses.retrieve("resp_1")),
      response: await response(),
      cancelled: await cancelled(),
    }),
  );
}

main();
