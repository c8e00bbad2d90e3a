// A client of Quire in Node: the contract is loaded as it is, nothing is generated.
//
//     npm install
//     node chat.js "Tell me a story." 127.0.0.1:50051
//
// Ctrl-C cancels the call on the server.
const path = require("node:path");
const grpc = require("@grpc/grpc-js");
const protoLoader = require("@grpc/proto-loader");

const proto = path.join(__dirname, "..", "..", "proto");
const definition = protoLoader.loadSync("quire/v1/inference.proto", {
  includeDirs: [proto],
  keepCase: true, // field names as in the contract
  longs: String, // 64-bit numbers do not fit JavaScript's
  enums: String,
  oneofs: true,
  defaults: true, // an empty text is "", not undefined
});
const { InferenceService } = grpc.loadPackageDefinition(definition).quire.v1;

const [question = "Tell me a story.", address = "127.0.0.1:50051"] = process.argv.slice(2);
const client = new InferenceService(address, grpc.credentials.createInsecure());
const call = client.Generate(
  {
    chat: { messages: [{ role: "user", content: question }] },
    sampling: { max_tokens: 100, temperature: 0.6 },
  },
  { deadline: Date.now() + 60_000 },
);

call.on("data", (response) => {
  if (response.event === "delta") {
    process.stdout.write(response.delta.text);
  } else if (response.event === "finished") {
    const { reason, usage } = response.finished;
    console.log(`\n[${reason}, ${usage.completion_tokens} tokens]`);
  }
});
call.on("error", (error) => {
  console.error(`${grpc.status[error.code]}: ${error.details}`);
  process.exitCode = 1;
});
call.on("end", () => client.close());
process.on("SIGINT", () => {
  process.exitCode = 130;
  call.cancel();
});
