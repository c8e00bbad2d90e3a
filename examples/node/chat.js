// A client of Quire in Node: the contract is loaded as it is, nothing is generated.
//
//     npm install
//     node chat.js "Tell me a story." 127.0.0.1:50051
//     QUIRE_CLIENT_API_KEY=… node chat.js "Tell me a story." localhost:50051 ca.crt
//
// With the PEM file of an authority it speaks TLS, and sends the API key of the environment.
// Ctrl-C cancels the call on the server.
const fs = require("node:fs");
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

function read(file) {
  try {
    return fs.readFileSync(file);
  } catch (error) {
    console.error(error.message);
    process.exit(1);
  }
}

const [question = "Tell me a story.", address = "127.0.0.1:50051", authority] =
  process.argv.slice(2);
const credentials = authority
  ? grpc.credentials.createSsl(read(authority))
  : grpc.credentials.createInsecure();
const metadata = new grpc.Metadata();
const key = process.env.QUIRE_CLIENT_API_KEY;
if (key && authority) {
  metadata.set("authorization", `Bearer ${key}`); // over TLS alone: it would be sent in clear
}
const client = new InferenceService(address, credentials);
const call = client.Generate(
  {
    chat: { messages: [{ role: "user", content: question }] },
    sampling: { max_tokens: 100, temperature: 0.6 },
  },
  metadata,
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
