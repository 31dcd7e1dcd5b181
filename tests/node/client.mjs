// Drives a vecmem server from its .proto files alone, as somebody would who has never seen our clients.
//
//   node client.mjs HOST:PORT PROTO_DIRECTORY COLLECTION
//
// Prints one JSON object with what each step returned.

import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";
import path from "node:path";

const [address, protoDirectory, collection] = process.argv.slice(2);

const load = (...files) =>
  protoLoader.loadSync(files, {
    includeDirs: [protoDirectory],
    keepCase: true,
    longs: String, // uint64 and int64 beyond 2^53 stay exact
    enums: String,
    oneofs: true,
  });

const files = ["collections", "points", "admin", "strings", "lists", "transactions", "watch", "channels"].map((name) => path.join("vecmem", "v1", `${name}.proto`));
const { vecmem } = grpc.loadPackageDefinition(load(...files));

const options = { "grpc.max_receive_message_length": -1 };
const credentials = grpc.credentials.createInsecure();
const collections = new vecmem.v1.CollectionService(address, credentials, options);
const points = new vecmem.v1.PointService(address, credentials, options);
const admin = new vecmem.v1.AdminService(address, credentials, options);
const strings = new vecmem.v1.StringService(address, credentials, options);
const lists = new vecmem.v1.ListService(address, credentials, options);
const transactions = new vecmem.v1.TransactionService(address, credentials, options);
const watch = new vecmem.v1.WatchService(address, credentials, options);
const channels = new vecmem.v1.ChannelService(address, credentials, options);

const call = (client, method, request) =>
  new Promise((resolve, reject) => {
    const deadline = new Date(Date.now() + 30_000);
    client[method](request, { deadline }, (error, reply) => (error ? reject(error) : resolve(reply)));
  });

// Opens a stream of replies; resolves when the first one has come, and then gives what is picked from the next `count` things.
const listen = (client, method, request, parts, count) =>
  new Promise((resolve, reject) => {
    const found = [];
    const stream = client[method](request, { deadline: new Date(Date.now() + 30_000) });
    const done = new Promise((finish, fail) => {
      stream.on("data", (reply) => {
        resolve({ done });
        found.push(...parts(reply));
        if (found.length >= count) {
          stream.cancel();
          finish(found);
        }
      });
      stream.on("error", (error) => {
        if (error.code !== grpc.status.CANCELLED) {
          fail(error);
          reject(error);
        }
      });
    });
  });

// google.rpc.Status and google.rpc.ErrorInfo, read from the wire by hand: no .proto of Google's is at hand here.
function* fieldsOf(bytes) {
  let at = 0;
  const varint = () => {
    let value = 0;
    for (let shift = 0; ; shift += 7) {
      const byte = bytes[at++];
      value += (byte & 0x7f) * 2 ** shift;
      if (byte < 0x80) return value;
    }
  };
  while (at < bytes.length) {
    const tag = varint();
    const number = Math.floor(tag / 8);
    if (tag % 8 === 0) {
      yield [number, varint()];
    } else if (tag % 8 === 2) {
      const length = varint();
      yield [number, bytes.subarray(at, at + length)];
      at += length;
    } else {
      throw new Error(`wire type ${tag % 8}`);
    }
  }
}

function errorInfo(error) {
  const info = { metadata: {} };
  for (const status of error.metadata.get("grpc-status-details-bin")) {
    for (const [number, detail] of fieldsOf(status)) {
      if (number !== 3) continue;
      const any = Object.fromEntries(fieldsOf(detail));
      info.type = any[1].toString();
      for (const [field, value] of fieldsOf(any[2])) {
        if (field === 1) info.reason = value.toString();
        if (field === 2) info.domain = value.toString();
        if (field === 3) {
          const entry = Object.fromEntries(fieldsOf(value));
          info.metadata[entry[1].toString()] = entry[2].toString();
        }
      }
    }
  }
  return info;
}

async function refusal(client, method, request) {
  try {
    await call(client, method, request);
  } catch (error) {
    return { code: grpc.status[error.code], details: error.details, ...errorInfo(error) };
  }
  throw new Error(`${method} was not refused`);
}

const packed = (...elements) => {
  const bytes = Buffer.alloc(4 * elements.length);
  elements.forEach((element, index) => bytes.writeFloatLE(element, 4 * index));
  return { dense: { packed: bytes, data_type: "DATA_TYPE_FLOAT32" } };
};
const values = (...elements) => ({ dense: { values: elements } });
const json = (value) => Buffer.from(typeof value === "string" ? value : JSON.stringify(value));
const ids = (hits) => hits.map((hit) => hit.point.id);
const integer = (path, value) => ({ field: { path, match: { integer: value } } });
const nearest = (vector, rest = {}) => ({ collection, nearest: { vector }, limit: 10, ...rest });

function upsertStream(batches) {
  return new Promise((resolve, reject) => {
    const acknowledged = [];
    const stream = points.UpsertStream({ deadline: new Date(Date.now() + 30_000) });
    stream.on("data", (reply) => acknowledged.push([reply.acknowledged_batch_count, reply.acknowledged_point_count]));
    stream.on("error", reject);
    stream.on("end", () => resolve(acknowledged));
    for (const batch of batches) stream.write(batch);
    stream.end();
  });
}

const result = {};

const created = await call(collections, "CreateCollection", {
  name: collection,
  config: { vector: { dimension: 3, metric: "METRIC_COSINE" }, vectors: { place: { dimension: 2, metric: "METRIC_EUCLIDEAN", flat: {} } } },
});
result.created = { name: created.collection.name, hnsw: created.collection.config.vector.hnsw };

const upserted = await call(points, "Upsert", {
  collection,
  points: [
    { id: "packed", vector: packed(1, 0, 0), vectors: { place: packed(3, 4) }, payload_json: json('{"n":9223372036854775807,"tag":"ä"}') },
    { id: "values", vector: values(0.6, 0.8, 0), payload_json: json({ n: 2 }) },
    { id: "struct", vector: packed(0, 1, 0), payload_struct: { fields: { n: { numberValue: 2 }, ok: { boolValue: true } } } },
  ],
  write: { request_id: `${collection} upsert` },
});
result.upserted = { inserted: upserted.inserted_count, version_is_position: upserted.version === upserted.header.position.sequence };

result.acknowledged = await upsertStream(
  Array.from({ length: 6 }, (_, batch) => ({
    collection: batch === 0 ? collection : "",
    points: Array.from({ length: 20 }, (_, index) => ({ id: `bulk-${batch}-${index}`, vector: packed(-1, index, batch), payload_json: json({ n: batch }) })),
  })),
);

const selectors = { with_vectors: { all: true } };
const byValues = await call(points, "Query", { query: nearest(values(1, 0, 0), { limit: 2, ...selectors }) });
result.query = byValues.hits.map((hit) => [hit.point.id, hit.score, hit.point.payload_json?.toString() ?? ""]);
result.encodings = { values: byValues.hits[0].point.vector.dense.values };
const byPacked = await call(points, "Query", { query: nearest(packed(1, 0, 0), { limit: 1, ...selectors }) });
result.encodings.packed = byPacked.hits[0].point.vector.dense.packed.toString("hex");

const filtered = await call(points, "Query", { query: nearest(packed(0, 1, 0), { filter: { all_of: { filters: [integer("n", 2), { none_of: { filters: [{ has_id: { ids: ["bulk-2-0"] } }] } }] } }, limit: 3 }) });
result.filtered = ids(filtered.hits);
const exact = await call(points, "Count", { collection, filter: integer("n", "9223372036854775807") });
result.int64_count = exact.count;
const named = await call(points, "Query", { query: { collection, nearest: { vector: values(0, 0) }, using: "place", limit: 5 } });
result.named = named.hits.map((hit) => [hit.point.id, hit.score]);
const near = await call(points, "Query", { query: { collection, nearest: { id: "packed" }, limit: 1 } });
result.near = ids(near.hits);

const batch = await call(points, "QueryBatch", { queries: [nearest(packed(1, 0, 0), { limit: 1 }), nearest(packed(1, 0), { limit: 1 })] });
result.batch = batch.outcomes.map((outcome) => (outcome.kind === "result" ? ids(outcome.result.hits) : [outcome.error.code, outcome.error.reason, outcome.error.metadata.field]));

result.scrolled = [];
let token = "";
do {
  const page = await call(points, "Scroll", { collection, page_size: 50, page_token: token });
  result.scrolled.push(page.points.length);
  token = page.next_page_token;
} while (token);

const updated = await call(points, "UpdatePayload", { collection, ids: { ids: ["values"] }, merge_json: json({ seen: true }) });
const got = await call(points, "Get", { collection, ids: ["values", "nobody"], with_payload: { all: true, format: "PAYLOAD_FORMAT_STRUCT" } });
result.updated = [updated.updated_count, got.points.map((point) => [point.id, point.payload_struct.fields.seen.boolValue, point.payload_struct.fields.n.numberValue])];

const key = (name) => Buffer.from(`{${collection}}${name}`);
const feed = await listen(watch, "Watch", { targets: [{ key_prefix: key("") }] }, (reply) => (reply.changes ?? []).map((change) => [change.kind, change.key.toString(), change.version > 0]), 4);
const news = await listen(channels, "Subscribe", { channels: [key("news")] }, (reply) => (reply.messages ?? []).map((message) => message.message.toString()), 2);
result.subscribers = (await call(channels, "Publish", { channel: key("news"), messages: [Buffer.from("a"), Buffer.from("b")] })).subscriber_count;
result.news = await news.done;
const waiting = call(lists, "PopListItems", { key: key("jobs"), end: "LIST_END_LEFT", wait_ms: 20_000 });
const committed = await call(transactions, "Commit", {
  compare: [{ key: key("a"), exists: false }],
  then: [{ operation: { set_string: { key: key("a"), value: Buffer.from("1") } } }, { operation: { push_list_items: { key: key("jobs"), end: "LIST_END_RIGHT", items: [Buffer.from("job")] } } }],
});
result.committed = [committed.succeeded, committed.results.map((one) => one.operation.kind)];
result.popped = (await waiting).items.map((item) => item.toString());
result.string = (await call(strings, "GetString", { key: key("a") })).value.toString();
await call(strings, "TakeString", { key: key("a") });
result.changes = await feed.done;

result.errors = {
  dimension: await refusal(points, "Upsert", { collection, points: [{ id: "bad", vector: packed(1) }] }),
  nan: await refusal(points, "Upsert", { collection, points: [{ id: "bad", vector: values(1, NaN, 0) }] }),
  missing: await refusal(points, "Count", { collection: "nobody" }),
  exists: await refusal(collections, "CreateCollection", { name: collection, config: { vector: { dimension: 3, metric: "METRIC_DOT" } } }),
};

result.deleted = [
  (await call(points, "Delete", { collection, ids: { ids: ["packed", "nobody"] } })).deleted_count,
  (await call(points, "Delete", { collection, filter: integer("n", 5) })).deleted_count,
];
result.count = (await call(points, "Count", { collection })).count;
result.collection_deleted = (await call(collections, "DeleteCollection", { name: collection })).deleted_point_count;
result.version = (await call(admin, "GetServerInfo", {})).version;

console.log(JSON.stringify(result));
for (const client of [collections, points, admin, strings, lists, transactions, watch, channels]) client.close();
